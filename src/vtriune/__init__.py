"""One RL to see them all: reinforcement learning of vision-language models on reasoning and perception."""
