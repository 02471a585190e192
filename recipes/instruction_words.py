"""The words of :mod:`.instructions`: things and their colours, synonyms by register, and what joins them."""

from __future__ import annotations

#: colour -> kind -> things
THINGS: dict[str, dict[str, tuple[str, ...]]] = {
    "red": {
        "food": ("apple", "cherry", "tomato", "beet", "radish"),
        "other": ("brick", "rose", "ruby", "heart", "poppy"),
    },
    "green": {
        "food": ("lime", "pea", "kale", "pear", "cress"),
        "other": ("grass", "frog", "leaf", "moss", "ivy"),
    },
    "yellow": {
        "food": ("banana", "lemon", "corn", "mustard", "yolk"),
        "other": ("sun", "canary", "straw", "taxi", "sulphur"),
    },
    "white": {
        "food": ("milk", "rice", "salt", "flour", "leek"),
        "other": ("snow", "swan", "pearl", "chalk", "cloud"),
    },
    "brown": {
        "food": ("bread", "nut", "coffee", "toast", "date"),
        "other": ("bear", "mud", "oak", "cork", "rust"),
    },
    "black": {
        "food": ("olive", "prune", "caviar", "treacle", "pepper"),
        "other": ("coal", "crow", "tar", "ink", "raven"),
    },
}
COLOURS = tuple(THINGS)
ALL_THINGS = tuple(thing for kinds in THINGS.values() for group in kinds.values() for thing in group)
MAX_NUMBER = 24

#: word -> register -> synonyms
SYNONYMS: dict[str, dict[str, tuple[str, ...]]] = {
    word: {"formal": tuple(formal.split()), "casual": tuple(casual.split())}
    for word, formal, casual in (
        ("big", "large sizable", "huge giant"),
        ("old", "aged ancient", "dusty creaky"),
        ("small", "petite diminutive", "tiny wee"),
        ("fast", "rapid swift", "speedy zippy"),
        ("sad", "sorrowful mournful", "gloomy weepy"),
        ("dog", "hound canine", "pup mutt"),
        ("man", "gentleman sir", "guy dude"),
        ("child", "infant minor", "kid tot"),
        ("king", "monarch ruler", "boss chief"),
        ("bird", "fowl avian", "chick birdie"),
        ("walked", "proceeded strolled", "went trotted"),
        ("ran", "hastened hurried", "dashed zoomed"),
        ("drove", "travelled journeyed", "cruised rolled"),
        ("moved", "relocated migrated", "shifted hopped"),
        ("house", "residence dwelling", "pad crib"),
        ("shop", "store boutique", "mart stall"),
        ("school", "academy college", "class lab"),
        ("garden", "park grounds", "yard lawn"),
    )
}
ADJECTIVES = ("big", "old", "small", "fast", "sad")
NOUNS = ("dog", "man", "child", "king", "bird")
VERBS = ("walked", "ran", "drove", "moved")
PLACES = ("house", "shop", "school", "garden")
OPENINGS = {"formal": ("it seems that", "", "indeed"), "casual": ("", "well ,", "so")}
ENDINGS = {"formal": (".", ", it is said ."), "casual": ("!", ", you know !")}

JOINING = (
    "list sort reverse add choose rewrite things and or without here are : . , - ! from low to high "
    "backwards plus is the sum it seems that indeed well so said you know saw a wanted very much"
)


def all_of(colour: str) -> tuple[str, ...]:
    """The things of a colour."""
    return THINGS[colour]["food"] + THINGS[colour]["other"]


def vocabulary() -> list[str]:
    """Every word there is, once."""
    synonyms = [word for by in SYNONYMS.values() for group in by.values() for word in group]
    numbers = map(str, range(MAX_NUMBER + 1))
    return list(dict.fromkeys([*JOINING.split(), *numbers, *COLOURS, *ALL_THINGS, *SYNONYMS, *synonyms]))
