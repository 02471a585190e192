"""Acting and bootstrapping on O(log n) candidate actions: what the agents of every host share.

obs --trunk--> s --head(s, ids)--> Q(s, ids)      ids = R u M, shape (B, C), C = O(log n)
                               \\--> stoch_argmax -> action        stoch_max -> bootstrap target
"""

from .actions import ActionCodec, ActionFeatures, BoxBins, IdCodec, MixedRadix
from .adaptive import AdaptiveUniform
from .candidates import ExactMaximum, SampledMaximum, preset, resolve
from .heads import FeatureHead, LinearHead, LowRankHead, RowHead, choose_head, make_head
from .legal import LegalActions
from .maximise import Maximum, exact_maximise, maximise, stoch_argmax, stoch_max
from .memories import CachedArgmax, Elite, RecentExploited
from .proposals import LearnedProposals
from .rows import RowTable, TargetRows
from .sources import Neighbours, Query, ReplayActions, Source, Uniform

__all__ = [
    "ActionCodec",
    "ActionFeatures",
    "AdaptiveUniform",
    "BoxBins",
    "CachedArgmax",
    "Elite",
    "ExactMaximum",
    "FeatureHead",
    "IdCodec",
    "LearnedProposals",
    "LegalActions",
    "LinearHead",
    "LowRankHead",
    "Maximum",
    "MixedRadix",
    "Neighbours",
    "Query",
    "RecentExploited",
    "ReplayActions",
    "RowHead",
    "RowTable",
    "SampledMaximum",
    "Source",
    "TargetRows",
    "Uniform",
    "choose_head",
    "exact_maximise",
    "make_head",
    "maximise",
    "preset",
    "resolve",
    "stoch_argmax",
    "stoch_max",
]
