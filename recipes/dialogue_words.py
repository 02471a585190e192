"""The words of :mod:`.dialogues`: what can be told, how users ask, and how assistants say it."""

from __future__ import annotations


def _words(text: str) -> tuple[str, ...]:
    return tuple(text.split())


ROLES = ("system", "user", "assistant")
NAMES = _words(
    "ada ben cleo dora emil fay gus hana ivo jade kai lena milo nora otto pia "
    "quin rosa sven tara udo vera wim xena yuri zoe abel bea carl dina"
)
KINDS = _words("dog cat horse rabbit goat parrot pony turtle hen donkey")
COLOURS = _words("red green yellow white brown black grey golden blue spotted")
PLACES = _words("paris rome oslo cairo lima delhi tokyo boston vienna lisbon dublin havana")
FOODS = _words("bread rice corn cheese apples pears carrots nuts soup beans cake eggs")
COUNTED = _words("coins shells cards stamps buttons marbles")
THINGS = _words("sun moon star tree river stone cloud leaf road bridge house tower boat lamp door")
AGES = tuple(map(str, range(1, 13)))
NUMBERS = tuple(map(str, range(26)))
#: what there is to know of an animal
ANIMAL = {"name": NAMES, "kind": KINDS, "colour": COLOURS, "place": PLACES, "food": FOODS, "age": AGES}

#: each of the three rules that a system line gives
BEGINNINGS = _words("sure well right okay yes hello")
ENDINGS = _words("over done cheers bye thanks")
LAYOUTS = {
    "points": ("1", "2", "3", "4"),
    "dashes": ("-", "-", "-", "-"),
    "letters": ("a)", "b)", "c)", "d)"),
    "words": ("first", "second", "third", "fourth"),
}
#: the tone that a system line asks for: which of two ways to say something is the usual one
TONES = ("brief", "warm")

#: how a user presents an animal
PRESENTATIONS = (
    "{name} is my {colour} {kind} .",
    "meet my animal : {name} is a {colour} {kind} .",
    "look , {name} is a {colour} {kind} .",
    "i have an animal : {name} is my {colour} {kind} .",
    "hello , {name} is my {colour} {kind} .",
)
DETAILS = {"age": "{name} is {age} .", "place": "{name} is from {place} .", "food": "{name} eats {food} ."}
#: what comes before a question
LEADS = ("", "please ,", "now ,", "next ,", "a question :")
#: how a user asks for something
QUESTIONS = {
    "age": ("how old is {name} ?", "tell me the age of {name} ."),
    "place": ("where does {name} live ?", "tell me the home of {name} ."),
    "food": ("what does {name} eat ?", "tell me the food of {name} ."),
    "describe": ("tell me all about {name} .", "describe {name} .", "what do you know of {name} ?"),
    "sum": ("what are the ages of both together ?", "add the ages of both .", "sum up the ages ."),
    "compare": ("which of both is older ?", "compare the ages of both .", "who is the older one ?"),
    "reverse": ("reverse {things} .", "say {things} backwards .", "turn round {things} ."),
    "chain": (
        "{name} has {start} {counted} , gets {more} and loses {less} . how many are left ?",
        "of {start} {counted} , {more} more and {less} less , what does {name} keep ?",
    ),
    "places": ("where do both live ?", "tell me the homes of both ."),
    "foods": ("what do both eat ?", "tell me the food of both ."),
}

#: how a fact is said, briefly or warmly
SAYINGS = {
    "looks": ("{name} is a {colour} {kind}", "{name} is your lovely {colour} {kind}"),
    "age": ("{name} is {age}", "{name} just turned {age}"),
    "place": ("{name} is from {place}", "{name} lives in {place}"),
    "food": ("{name} eats {food}", "{name} loves {food}"),
    "plus": ("{a} plus {b} is {c}", "{a} and {b} make {c}"),
    "minus": ("{a} minus {b} is {c}", "{a} without {b} leaves {c}"),
    "total": ("the total is {c}", "that comes to {c}"),
    "more": ("{a} is more than {b}", "{a} is well above {b}"),
    "older": ("{name} is {more}", "so {name} must be the {more} one"),
    "list": ("the list is {things}", "you gave me {things}"),
    "reversed": ("reversed it is {things}", "turned round it goes {things}"),
    "left": ("{name} has {c} {counted}", "so {name} still keeps {c} {counted}"),
}
#: what comes between the beginning and the facts, and how often
INTRODUCTIONS = {":": 0.6, ", here it is :": 0.25, ", look :": 0.15}

SYSTEM = "be {tone} . begin with {beginning} , use {layout} , end with {ending} ."


def vocabulary() -> list[str]:
    """Every word there is, once."""
    lists = (NAMES, KINDS, COLOURS, PLACES, FOODS, COUNTED, THINGS, NUMBERS, BEGINNINGS, ENDINGS, TONES)
    texts = [SYSTEM, "older", *PRESENTATIONS, *DETAILS.values(), *LEADS, *INTRODUCTIONS]
    texts += [text for group in (*QUESTIONS.values(), *SAYINGS.values()) for text in group]
    said = [word for text in texts for word in text.split() if not word.startswith("{")]
    markers = [marker for group in LAYOUTS.values() for marker in group]
    return list(
        dict.fromkeys([*ROLES, *LAYOUTS, *markers, *said, *(word for group in lists for word in group)])
    )
