"""lm-eval and inspect-ai on a tiny language model with local tasks, where they are installed.

Development does without them: inspect-ai wants an older fsspec than `constraints.txt` has.
"""

from __future__ import annotations

import gc
import json
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path

import pytest

from cuvee.evaluate.adapters import harness, inspection
from cuvee.testing.tiny_models import load, tiny

pytestmark = [
    pytest.mark.transformers,
    pytest.mark.filterwarnings("ignore"),  # of the programs and what they import
]

TASK = """\
task: colours
dataset_path: json
dataset_kwargs: {{data_files: {{test: "{data}"}}}}
test_split: test
output_type: multiple_choice
doc_to_text: "sky :"
doc_to_choice: ["blue", "red"]
doc_to_target: "{{{{answer}}}}"
metric_list: [{{metric: acc}}]
metadata: {{version: 3}}
"""
INSPECT = """\
from inspect_ai import Task, task
from inspect_ai.dataset import Sample
from inspect_ai.scorer import includes


@task
def colours():
    return Task(dataset=[Sample(input="sky", target=t) for t in ("", "nosuch")], scorer=includes())
"""


@pytest.fixture(autouse=True)
def swept() -> Iterator[None]:
    """What the programs leave open is collected here, where warnings of theirs do not count."""
    yield
    gc.collect()


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    if not any(map(find_spec, ("lm_eval", "inspect_ai"))):
        pytest.skip("neither lm-eval nor inspect-ai is installed")
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    place = tiny("llama", folder=tmp_path_factory.mktemp("tiny"))
    words = ["<s>", "</s>", "<unk>", "sky", ":", "blue", "red", *(f"w{i}" for i in range(89))]
    raw = Tokenizer(models.WordLevel({w: i for i, w in enumerate(words)}, unk_token="<unk>"))
    raw.pre_tokenizer = pre_tokenizers.Whitespace()
    PreTrainedTokenizerFast(
        tokenizer_object=raw,
        bos_token="<s>",
        eos_token="</s>",
        unk_token="<unk>",
        pad_token="</s>",
        chat_template="{% for message in messages %}{{ message.content }}{% endfor %}",
    ).save_pretrained(place)
    return place


def test_lm_eval_scores_a_folder_and_a_live_model_alike_without_a_connection(
    folder: Path, tmp_path: Path
) -> None:
    pytest.importorskip("lm_eval")
    from transformers import AutoTokenizer

    data = tmp_path / "data.jsonl"
    data.write_text("\n".join(json.dumps({"answer": a}) for a in (0, 1, 0)) + "\n")
    (tmp_path / "tasks").mkdir()
    (tmp_path / "tasks" / "colours.yaml").write_text(TASK.format(data=data))
    found = harness.evaluate(folder, ["colours"], include=tmp_path / "tasks")
    live = harness.evaluate(
        load(folder), ["colours"], tokenizer=AutoTokenizer.from_pretrained(folder), include=tmp_path / "tasks"
    )
    # one question, two answers: the model is right on all of one kind
    assert found.scores["colours"]["acc"] in (pytest.approx(1 / 3), pytest.approx(2 / 3))
    assert found.items["colours"] in ([1.0, 0.0, 1.0], [0.0, 1.0, 0.0])
    assert live.scores == found.scores and live.model == "LlamaForCausalLM"
    assert found.prompts == {"colours": "sky :"} and str(found.versions["task colours"]) in ("3", "3.0")


def test_inspect_ai_scores_a_folder_without_a_connection(folder: Path, tmp_path: Path) -> None:
    pytest.importorskip("inspect_ai")
    (tmp_path / "colours.py").write_text(INSPECT)
    found = inspection.evaluate(folder, str(tmp_path / "colours.py"), tokens=4)
    assert found.scores == {"colours": {"accuracy": 0.5}}
    assert found.items == {"colours": [1.0, 0.0]} and found.prompts == {"colours": "sky"}


def said_by(folder: Path) -> str:
    """What the model says when it takes the likeliest token always, with transformers alone."""
    from transformers import AutoTokenizer

    words, model = AutoTokenizer.from_pretrained(folder), load(folder)
    asked = words("sky", return_tensors="pt")
    said = model.generate(**asked, max_new_tokens=16, do_sample=False)[0, asked["input_ids"].shape[1] :]
    answer: str = words.decode(said, skip_special_tokens=True)
    assert len(answer.split()) > 4
    return answer


@pytest.mark.parametrize(
    "own",
    [
        "",
        ", config=GenerateConfig(temperature=0)",
        ", config=GenerateConfig(temperature=2, top_k=50)",
        ", solver=generate(temperature=2, top_k=50, seed=7)",
    ],
    ids=["plain", "cold", "hot", "hot solver"],
)
def test_inspect_ai_scores_the_likeliest_answer_every_time(folder: Path, tmp_path: Path, own: str) -> None:
    """Its provider draws tokens: of what a tiny untrained model says, no two runs were alike."""
    pytest.importorskip("inspect_ai")
    body = INSPECT.replace('"nosuch"', repr(said_by(folder))).replace(
        "scorer=includes()", f"scorer=includes(){own}"
    )
    more = "from inspect_ai.model import GenerateConfig\nfrom inspect_ai.solver import generate\n"
    (tmp_path / "colours.py").write_text(more + body)
    for _ in range(2):
        found = inspection.evaluate(folder, str(tmp_path / "colours.py"), tokens=16)
        assert found.items == {"colours": [1.0, 1.0]}


def test_inspect_ai_scores_the_weights_that_are_there_now(folder: Path, tmp_path: Path) -> None:
    """A model of the same folder was taken from memory, whatever had become of its files."""
    pytest.importorskip("inspect_ai")
    import shutil

    import torch

    place = tmp_path / "model"
    shutil.copytree(folder, place)
    (tmp_path / "colours.py").write_text(INSPECT.replace('"nosuch"', repr(said_by(folder))))
    first = inspection.evaluate(place, str(tmp_path / "colours.py"), tokens=16)
    other = load(place)
    with torch.no_grad():
        for tensor in other.parameters():
            tensor.neg_()
    other.save_pretrained(place)
    second = inspection.evaluate(place, str(tmp_path / "colours.py"), tokens=16)
    assert (first.items["colours"], second.items["colours"]) == ([1.0, 1.0], [1.0, 0.0])
