"""The mathematics of GRPO as pure functions, one per equation, in the paper's symbols."""
