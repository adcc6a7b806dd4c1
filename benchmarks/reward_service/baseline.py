"""The released reward server's design, rebuilt from its description: what the service is measured against.

One request per sample; an async handler that judges by itself, in the event loop of its process. Only what costs time
or decides a reward is rebuilt, none of its code is used; logging is left out, but for uvicorn's own access log.

    python -m uvicorn benchmarks.reward_service.baseline:app --workers 2
"""

from __future__ import annotations

import io
import json
import re
from collections.abc import Callable
from contextlib import redirect_stdout
from typing import Any

import math_verify
import numpy as np
from fastapi import FastAPI
from fastapi.middleware.cors import CORSMiddleware
from latex2sympy2_extended import NormalizationConfig
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval
from pydantic import BaseModel

THRESHOLDS = (0.5, 0.55, 0.6, 0.65, 0.7, 0.75, 0.8, 0.85, 0.9, 0.95, 0.99)
WEIGHTS = ("iou_max_iou_first", "iou_max_label_first", "map", "map50", "map75")
SIZE_PENALTY = 0.6

Found = dict[str, Any]
"""A box as answered: bbox_2d, label."""
Match = Callable[[list[Found], list[Found], float], list[float]]
Rewards = dict[str, float]


class Payload(BaseModel):
    response: str
    prompt: str
    answer: str
    solution: str
    data_source: str
    reward_verifier: str
    reward_verifier_parm: str
    format_ratio: float | None = None
    accuracy_ratio: float | None = None


app = FastAPI()
app.add_middleware(
    CORSMiddleware, allow_origins=["*"], allow_credentials=True, allow_methods=["*"], allow_headers=["*"]
)


@app.get("/")
async def root() -> dict[str, str]:
    return {"message": "Reward Judge Server"}


@app.post("/judge")
async def judge(payload: Payload) -> dict[str, Rewards]:
    rewards = {"format_reward": 0.0, "accuracy_reward": 0.0, "reflection_reward": 0.0, "final_reward": 0.0}
    try:
        parameters = json.loads(payload.reward_verifier_parm)
        progress = float(parameters["step"]) / float(parameters["total_steps"])
        if payload.reward_verifier == "mathverify":
            layout = math_layout(payload.response)
            accuracy = math_accuracy(payload.response, payload.solution)
        elif payload.reward_verifier == "detection":
            layout = detection_layout(payload.response)
            report = detection_report(payload.response, payload.solution, parameters, progress)
            accuracy = report.pop("final_score")
            rewards.update({f"{name}_reward": value for name, value in report.items()})
        else:
            raise ValueError(payload.reward_verifier)
        rewards["format_reward"], rewards["accuracy_reward"] = layout, accuracy
        a = 1.0 if payload.accuracy_ratio is None else payload.accuracy_ratio
        f = 0.1 if payload.format_ratio is None else payload.format_ratio
        rewards["final_reward"] = accuracy * (a / (a + f)) + layout * (f / (a + f))
    except Exception:  # as released: whatever breaks is a reward of 0
        pass
    return {"rewards": rewards}


def math_layout(response: str) -> float:
    return sum(
        0.25 * (response.count(tag) == 1) for tag in ("<think>\n", "\n</think>\n", "\n<answer>\n", "\n</answer>")
    )


def math_accuracy(response: str, solution: str) -> float:
    """Both lower-cased; math-verify's own time limits, which are signals: this is the main thread."""
    gold = math_verify.parse(solution.lower(), extraction_mode="first_match")
    if not gold:
        return 0.0
    normalization = NormalizationConfig(
        basic_latex=True, units=True, malformed_operators=False, nits=False, boxed="all"
    )
    config = math_verify.LatexExtractionConfig(
        normalization_config=normalization, boxed_match_priority=0, try_extract_without_anchor=False
    )
    answer = math_verify.parse(response.lower(), extraction_config=[config], extraction_mode="first_match")
    return float(math_verify.verify(gold, answer))


def answer_content(text: str) -> str:
    found = re.search(r"<answer>(.*?)</answer>", text, re.DOTALL)
    return found.group(1).strip() if found else ""


def read(text: str) -> list[Found]:
    """Boxes of a lower-cased list; each position once, corners not swapped."""
    text = text.replace("[[", "[").replace("]]", "]")
    if not text.endswith("]"):
        text = text.rsplit("},", 1)[0] + "}]"
    try:
        items = json.loads(text.replace("'", '"').replace("\\", ""))
    except ValueError:
        return []
    boxes: dict[tuple[float, ...], Found] = {}
    for item in items if isinstance(items, list) else []:
        corners = item.get("bbox_2d") if isinstance(item, dict) else None
        if not isinstance(corners, list) or len(corners) != 4 or not isinstance(item.get("label"), str):
            continue
        numbers = all(isinstance(side, int | float) for side in corners)
        if numbers and corners[0] <= corners[2] and corners[1] <= corners[3]:
            boxes.setdefault(tuple(corners), item)
    return list(boxes.values())


def detection_layout(response: str) -> float:
    tagged = response.count("\n<answer>\n") >= 1 and response.count("\n</answer>") == 1
    return float(tagged and bool(read(answer_content(response.strip()).lower())))


def iou(a: list[float], b: list[float]) -> float:
    left, top = (a[0] if a[0] > b[0] else b[0]), (a[1] if a[1] > b[1] else b[1])
    right, bottom = (a[2] if a[2] < b[2] else b[2]), (a[3] if a[3] < b[3] else b[3])
    if right <= left or bottom <= top:
        return 0.0
    shared = (right - left) * (bottom - top)
    return float(shared) / ((a[2] - a[0]) * (a[3] - a[1]) + (b[2] - b[0]) * (b[3] - b[1]) - shared)


def label_first(predicted: list[Found], gold: list[Found], eps: float) -> list[float]:
    """Each gold box in turn takes the free box of its label that it overlaps most, if that reaches eps."""
    taken: set[int] = set()
    matched: list[float] = []
    for target in gold:
        rivals, values = [], []
        for index, box in enumerate(predicted):
            if index not in taken and box["label"].lower() == target["label"].lower():
                rivals.append(index)
                values.append(iou(box["bbox_2d"], target["bbox_2d"]))
        if rivals and np.max(values) >= eps:
            best = int(np.argmax(values))
            matched.append(float(values[best]))
            taken.add(rivals[best])
    return matched


def iou_first(predicted: list[Found], gold: list[Found], eps: float) -> list[float]:
    """The greatest IoU left, which by a fault of the released loop is credited to the last pair scanned."""
    matrix = np.zeros((len(predicted), len(gold)))
    for i, box in enumerate(predicted):
        for j, target in enumerate(gold):
            matrix[i][j] = iou(box["bbox_2d"], target["bbox_2d"])
    rows, columns = list(range(len(predicted))), list(range(len(gold)))
    matched: list[float] = []
    while rows and columns:
        greatest = -1.0
        for i in rows:
            for j in columns:
                if matrix[i][j] > greatest:  # noqa: PLR1730 - a call to max() would make the baseline slower
                    greatest = matrix[i][j]
        if greatest < eps:
            break
        i, j = rows.pop(), columns.pop()
        same = predicted[i]["label"].lower() == gold[j]["label"].lower()
        matched.append(float(greatest) if same else 0.0)
    return matched


def score(predicted: list[Found], gold: list[Found], match: Match, eps: float, completeness: float) -> Rewards:
    matched = match(predicted, gold, eps)
    missed, false = 1 - len(matched) / len(gold), 1 - len(matched) / len(predicted)
    mean = sum(matched) / len(gold)
    weighted = (1 - completeness) * mean + completeness * (1 - (missed + false) / 2)
    return {"pure": mean, "precision": 1 - false, "recall": 1 - missed, "weighted": weighted}


def coco_precisions(predicted: list[Found], gold: list[Found]) -> tuple[float, float, float]:
    """mAP, AP at 0.5 and at 0.75 by pycocotools, one area range, every confidence 1."""
    ids = {label: number for number, label in enumerate(dict.fromkeys(box["label"] for box in gold))}

    def annotations(boxes: list[Found], **more: Any) -> list[dict[str, Any]]:
        listed: list[dict[str, Any]] = []
        for box in boxes:
            x1, y1, x2, y2 = box["bbox_2d"]
            sides = {"bbox": [x1, y1, x2 - x1, y2 - y1], "area": (x2 - x1) * (y2 - y1)}
            if box["label"] in ids:
                own = {"id": len(listed) + 1, "image_id": 0, "category_id": ids[box["label"]]}
                listed.append({**own, **sides, **more})
        return listed

    answered = annotations(predicted, score=1.0)
    if not answered:
        return 0.0, 0.0, 0.0
    with redirect_stdout(io.StringIO()):  # it reports its progress
        truth = COCO()
        truth.dataset = {
            "images": [{"id": 0}],
            "categories": [{"id": number, "name": label} for label, number in ids.items()],
            "annotations": annotations(gold, iscrowd=0),
        }
        truth.createIndex()
        evaluation = COCOeval(truth, truth.loadRes(answered), "bbox")
        evaluation.params.areaRng, evaluation.params.areaRngLbl = [[0, 1e10]], ["all"]
        evaluation.evaluate()
        evaluation.accumulate()
    # (thresholds, recalls, categories, areas, detections); -1 where undefined
    precision = evaluation.eval["precision"][..., 0, -1]

    def mean(part: np.ndarray) -> float:
        return float(part[part > -1].mean()) if (part > -1).any() else -1.0

    return mean(precision), mean(precision[0]), mean(precision[5])


def detection_report(response: str, solution: str, parameters: dict[str, Any], progress: float) -> Rewards:
    """Every figure that the released server computes, whatever its weight: 22 matchings and a COCO evaluation."""
    ratio = {name: float(parameters["det_reward_ratio"].get(name, 0.0)) for name in (*WEIGHTS, "iou_completeness")}
    matchers: dict[str, Match] = {"iou": iou_first, "label": label_first}
    shown = {"iou": (0.5, 0.95), "label": (0.5, 0.75, 0.95, 0.99)}
    predicted = read(answer_content(response.strip()).lower())
    gold = read(answer_content(solution.strip()).lower())
    if not predicted or not gold:
        names = ["final_score", "size_penalty"]
        names += [f"{kind}_iou_score_max_{by}" for kind in ("pure", "weighted") for by in matchers]
        names += [f"{kind}_{ap}_score" for kind in ("pure", "weighted") for ap in ("map", "map50", "map75")]
        names += [
            f"report_iou_{eps * 100:.0f}_{by}_match_{part}"
            for by, many in shown.items()
            for eps in many
            for part in ("pure", "precision", "recall")
        ]
        return dict.fromkeys(names, 0.0)
    if parameters.get("det_verifier_normalized") and parameters.get("image_grid_thw"):
        _, height, width = parameters["image_grid_thw"][0]
        for box in predicted:
            sides = zip(box["bbox_2d"], (width, height, width, height), strict=True)
            box["bbox_2d"] = [int(corner / side * 1000.0) for corner, side in sides]
    penalty = SIZE_PENALTY ** abs(len(predicted) - len(gold))
    scores = {
        by: {eps: score(predicted, gold, match, eps, ratio["iou_completeness"]) for eps in THRESHOLDS}
        for by, match in matchers.items()
    }
    eps = 0.85 if progress <= 0.1 else 0.95 if progress <= 0.25 else 0.99
    pure = {f"iou_score_max_{by}": scores[by][eps]["weighted"] for by in matchers}
    pure |= zip(("map_score", "map50_score", "map75_score"), coco_precisions(predicted, gold), strict=True)
    report = {"size_penalty": penalty}
    report |= {f"pure_{name}": value for name, value in pure.items()}
    report |= {f"weighted_{name}": value * penalty for name, value in pure.items()}
    for by, many in shown.items():
        for one in many:
            for part in ("pure", "precision", "recall"):
                report[f"report_iou_{one * 100:.0f}_{by}_match_{part}"] = scores[by][one][part]
    total = sum(ratio[name] for name in WEIGHTS)
    blend = sum(
        ratio[weight] * value * penalty
        for weight, value in zip(
            ("iou_max_iou_first", "iou_max_label_first", "map", "map50", "map75"), pure.values(), strict=True
        )
    )
    report["final_score"] = blend / total if total > 0 else 0.0
    return report
