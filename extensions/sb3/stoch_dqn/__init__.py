from .policies import CnnPolicy, MlpPolicy, MultiInputPolicy
from .stoch_ddqn import StochDDQN
from .stoch_dqn import StochDQN

__all__ = ["CnnPolicy", "MlpPolicy", "MultiInputPolicy", "StochDDQN", "StochDQN"]
