"""AdEMAMix (Pagliardini, Ablin and Grangier, 2024; arXiv 2409.03137) as a ``torch.optim`` optimizer."""

from .eight_bit import AdEMAMix8bit
from .functional import ademamix
from .optimizer import AdEMAMix
from .scheduler import SlowScheduler

__all__ = ["AdEMAMix", "AdEMAMix8bit", "SlowScheduler", "ademamix"]
