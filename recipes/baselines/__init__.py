"""What StochDQN is compared with: a file a method, all trained by the same loop on the same worlds."""
