from .policies import CnnPolicy, MlpPolicy, MultiInputPolicy
from .stoch_dqn import StochDDQN, StochDQN

__all__ = ["CnnPolicy", "MlpPolicy", "MultiInputPolicy", "StochDDQN", "StochDQN"]
