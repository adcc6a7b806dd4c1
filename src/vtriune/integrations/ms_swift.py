"""A plug-in for ms-swift: `--external_plugins <this file> --reward_funcs vtriune`, servers from the environment.

Source: ms-swift 4.6.0, swift/rewards/orm.py, `ORM`; swift/rl_core/grpo_algorithm.py, `compute_rewards_per_func`.
"""

import os
from pathlib import Path
from typing import Any

from swift.rewards import ORM, orms

from vtriune.reward.client import RewardClient, read_token
from vtriune.reward.label import neutral_rewards, read_label


class JudgeORM(ORM):  # type: ignore[misc]
    """Asks VTRIUNE_SERVERS (addresses, separated by commas) with the token in the file VTRIUNE_TOKEN_FILE, if any.

    ms-swift sums a None as 0, so that an answer without a verdict has to be neutral (`neutral_rewards`).
    """

    def __init__(self, args: Any = None, **kwargs: Any) -> None:
        super().__init__(args, **kwargs)
        token_file = os.environ.get("VTRIUNE_TOKEN_FILE")
        token = read_token(Path(token_file)) if token_file else ""
        self._client = RewardClient(os.environ["VTRIUNE_SERVERS"].split(","), token=token)

    def __call__(self, completions: list[str], *, reward_label: list[str], **columns: Any) -> list[float]:
        """Rewards in order. `reward_label` is a column of the data set."""
        state, ids = columns["trainer_state"], columns["response_token_ids"]
        items = [
            read_label(label).item(
                text,
                state.global_step,
                state.max_steps,
                sum(map(len, one)) if one and isinstance(one[0], list) else len(one),
            )
            for label, text, one in zip(reward_label, completions, ids, strict=True)
        ]
        return neutral_rewards(reward_label, self._client.submit(items).result(), self.args.num_generations)


orms["vtriune"] = JudgeORM
