"""A sampling engine for verl around transformers' generate, on a CPU: one server per replica, requests in batches."""

from __future__ import annotations

import asyncio
import os
from collections.abc import Iterable
from typing import Any

import ray
import torch
from torch import Tensor
from transformers import AutoModelForImageTextToText, AutoProcessor, LogitsProcessorList
from verl.workers.rollout.base import BaseRollout
from verl.workers.rollout.replica import RolloutReplica, TokenOutput

BATCH = 64
QUIET_S = 0.1
"""A batch begins when no request has come for so long: its rows then depend on little but the step."""


def _name(rank: int) -> str:
    return f"transformers_server_{rank}"


class ServerAdapter(BaseRollout):  # type: ignore[misc]
    """In the training worker: hands the weights over. All ranks take part in gathering them."""

    def __init__(self, config: Any, model_config: Any, device_mesh: Any, *args: Any, **kwargs: Any) -> None:
        super().__init__(config, model_config, device_mesh, *args, **kwargs)
        self._rank = int(os.environ["RANK"])

    async def resume(self, tags: Any) -> None:
        pass

    async def release(self) -> None:
        pass

    async def update_weights(
        self, weights: Iterable[tuple[str, Tensor]], global_steps: int | None = None, **_: Any
    ) -> None:
        state = {name: weight.detach().cpu().clone() for name, weight in weights}
        await ray.get_actor(_name(self._rank)).load_weights.remote(state, global_steps)


@ray.remote(num_cpus=0, max_concurrency=256)
class Server:
    def __init__(self, path: str, response_length: int) -> None:
        torch.set_num_threads(1)
        self._model = AutoModelForImageTextToText.from_pretrained(path, dtype=torch.float32).eval()
        self._processor = AutoProcessor.from_pretrained(path)
        self._longest = response_length
        self._steps = 0
        self._waiting: list[tuple[dict[str, Any], asyncio.Future[Any]]] = []
        self._worker: asyncio.Task[None] | None = None
        self._weights = asyncio.Lock()

    async def load_weights(self, state: dict[str, Tensor], global_steps: int | None) -> None:
        async with self._weights:
            missing, unexpected = self._model.load_state_dict(state, strict=False)
            tied = {"lm_head.weight"}
            if unexpected or set(missing) - tied:
                raise RuntimeError(f"weights don't fit: {missing[:3]} {unexpected[:3]}")
            self._steps = global_steps if global_steps is not None else self._steps

    async def generate(
        self, prompt_ids: list[int], sampling_params: dict[str, Any], image_data: Any = None, **_: Any
    ) -> Any:
        future: asyncio.Future[Any] = asyncio.get_running_loop().create_future()
        request = {"ids": list(prompt_ids), "images": image_data or [], "params": sampling_params}
        self._waiting.append((request, future))
        if self._worker is None or self._worker.done():
            self._worker = asyncio.create_task(self._work())
        return await future

    async def _work(self) -> None:
        while self._waiting:
            seen = -1
            while seen != len(self._waiting):
                seen = len(self._waiting)
                await asyncio.sleep(QUIET_S)
            batch = sorted(self._waiting, key=lambda one: (one[0]["ids"], one[0]["params"]["seed"]))
            self._waiting = []
            async with self._weights:
                for start in range(0, len(batch), BATCH):
                    some = batch[start : start + BATCH]
                    try:
                        outputs = await asyncio.to_thread(self._generate, [request for request, _ in some])
                    except Exception as error:
                        for _, future in some:
                            future.set_exception(error)
                    else:
                        for (_, future), output in zip(some, outputs, strict=True):
                            future.set_result(output)

    @torch.no_grad()
    def _generate(self, requests: list[dict[str, Any]]) -> list[Any]:
        tokenizer, config = self._processor.tokenizer, self._model.config
        length = max(len(one["ids"]) for one in requests)
        ids = torch.full((len(requests), length), tokenizer.pad_token_id)
        mask = torch.zeros_like(ids)
        for row, one in enumerate(requests):
            ids[row, length - len(one["ids"]) :] = torch.tensor(one["ids"])
            mask[row, length - len(one["ids"]) :] = 1
        images = [image for one in requests for image in one["images"]]
        inputs = dict(self._processor.image_processor(images=images, return_tensors="pt")) if images else {}
        draw = _Draw([one["params"] for one in requests])
        output = self._model.generate(
            input_ids=ids,
            attention_mask=mask,
            mm_token_type_ids=(ids == config.image_token_id).long(),
            max_new_tokens=self._longest,
            do_sample=False,
            logits_processor=LogitsProcessorList([draw]),
            return_dict_in_generate=True,
            **inputs,
        )
        eos = tokenizer.eos_token_id
        results = []
        for row, tokens in enumerate(output.sequences[:, length:].tolist()):
            count = tokens.index(eos) + 1 if eos in tokens else len(tokens)
            logprobs = [float(draw.logprobs[k][row, tokens[k]]) for k in range(count)]
            extra = {"global_steps": self._steps}
            results.append(
                TokenOutput(token_ids=tokens[:count], log_probs=logprobs, stop_reason="completed", extra_fields=extra)
            )
        return results

    async def nothing(self, *_: Any, **__: Any) -> None:
        pass

    wake_up = sleep = abort_all_requests = resume_generation = nothing
    clear_kv_cache = release_kv_cache = resume_kv_cache = start_profile = stop_profile = nothing


class _Draw:
    """Makes the likeliest token the sampled one (Gumbel): each row by its own seed, so that no batch matters."""

    def __init__(self, params: list[dict[str, Any]]) -> None:
        self._params = params
        self._generators = [torch.Generator().manual_seed(one["seed"]) for one in params]
        self.logprobs: list[Tensor] = []

    def __call__(self, ids: Tensor, logits: Tensor) -> Tensor:
        scores = logits.float().clone()
        for row, one in enumerate(self._params):
            for token, bias in one.get("logit_bias", {}).items():
                scores[row, int(token)] += bias
            scores[row] /= one["temperature"] or 1.0
        self.logprobs.append(torch.log_softmax(scores, -1))
        for row, (one, generator) in enumerate(zip(self._params, self._generators, strict=True)):
            if one["temperature"]:
                uniform = torch.rand(scores.shape[-1], generator=generator).clamp(1e-9, 1 - 1e-7)
                scores[row] -= torch.log(-torch.log(uniform))
        return scores


class Replica(RolloutReplica):  # type: ignore[misc]
    async def launch_servers(self) -> None:
        name = _name(self.replica_rank)
        server = Server.options(name=name).remote(  # type: ignore[attr-defined]
            self.model_config.path, self.config.response_length
        )
        await server.nothing.remote()
        self.servers, self._server_handle, self._server_address = [server], server, name
