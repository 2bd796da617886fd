from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import msgspec
import pytest
import torch
from safetensors.torch import load_file

from models.adapters import AdapterSettings
from models.bundle import load_model
from models.model_file import read_model_file
from models.tokens import Row
from models.training.config import FusionStage, TrainingConfig, load_config
from models.training.datasets import LabelledText, examples_of, read_labelled, select
from models.training.measure import measure
from models.training.train import Cancelled, fine_tune, gather, train
from monitor.cli.train import train as train_verb
from monitor.errors import ConfigurationError, InputError
from monitor.taxonomy import load_taxonomy
from tests.models.tiny import picture

GOOD = ("profit surges", "shares jump on record sales", "raises outlook", "wins big order")
BAD = ("profit plunges", "shares tumble on weak sales", "cuts outlook", "loses big order")


@pytest.fixture(scope="module")
def labelled(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Sixty rows whose sentiment hangs on their words."""
    path = tmp_path_factory.mktemp("rows") / "rows.jsonl"
    lines: list[dict[str, Any]] = []
    for number in range(60):
        name, part = f"Firm{number}", "train" if number < 44 else "validation" if number < 52 else "test"
        if number % 3 == 2:
            lines.append(
                {"text": f"{name} holds meeting {number}", "sentiment": "neutral", "topic": "earnings", "part": part}
            )
        else:
            phrase, label = (GOOD, "positive") if number % 3 else (BAD, "negative")
            lines.append({"text": f"{name} {phrase[number % 4]}", "entities": {name: label}, "part": part})
    path.write_text("\n".join(json.dumps(line) for line in lines))
    return path


def test_another_taxonomy_is_trained_for(small_backbone: Path, labelled: Path, tmp_path: Path) -> None:
    path = tmp_path / "topics.json"
    topics = [{"name": name, "title": name.title()} for name in ("weather", "earnings", "harvests")]
    path.write_text(json.dumps({"name": "own", "topics": topics}))
    config = config_of(small_backbone, taxonomy=str(path), epochs=1, trackers=())
    model = load_model(train(config, tmp_path / "out", data=[labelled]), device="cpu")
    assert model.taxonomy.labels == ("weather", "earnings", "harvests")
    assert model.predict([Row("Firm holds meeting")]).topic.shape == (1, 3)
    held = gather(msgspec.structs.replace(config, sets=("twitter_topic",)), taxonomy=load_taxonomy(path))
    assert {example.topic for example in held.train} == {1}


def config_of(backbone: Path, **changes: Any) -> TrainingConfig:
    base = TrainingConfig(
        name="small",
        sets=(),
        text_backbone=str(backbone),
        vision_backbone="",
        adapter=AdapterSettings(rank=4, alpha=8, dropout=0.1),
        epochs=2,
        token_budget=64,
        backbone_dropout=0.1,
        averaging=0.9,
        checkpoint_s=1e9,
        learning_rate=5e-3,
    )
    return msgspec.structs.replace(base, **changes)


def weights_of(folder: Path) -> dict[str, torch.Tensor]:
    found: dict[str, torch.Tensor] = {}
    for path in sorted(folder.glob("*.safetensors")):
        found |= {f"{path.name}/{name}": tensor for name, tensor in load_file(path).items()}
    return found


def test_a_run_learns_and_leaves_a_whole_model(tmp_path: Path, small_backbone: Path, labelled: Path) -> None:
    seen: list[tuple[str, int, int]] = []
    out = train(
        config_of(
            small_backbone,
            epochs=60,
            patience=100,
            token_dropout=0.0,
            label_smoothing=0.0,
            averaging=0.0,
            learning_rate=1e-2,
        ),
        tmp_path / "out",
        data=[labelled],
        progress=lambda stage, done, total, note: seen.append((stage, done, total)),
    )
    assert [done for _, done, _ in seen] == list(range(1, len(seen) + 1))
    file = read_model_file(out)
    assert file.data == ("rows",)
    card = (out / "README.md").read_text()
    assert f"{file.metrics['rows.sentiment.accuracy']:.3f}" in card
    assert f"| rows.entities | positive | {file.metrics['rows.entities.precision.positive']:.3f} |" in card
    assert card.startswith("---\nlibrary_name: peft")
    assert json.loads((out / "adapter_config.json").read_text())["r"] == 4
    trained = examples_of(select(read_labelled(labelled), "train"))
    found = measure(load_model(out, device="cpu"), trained)
    assert found["rows.sentiment.accuracy"] > 0.9
    assert found["rows.entities.accuracy"] > 0.8


@pytest.mark.parametrize(("kind", "stop_after"), [("lora", 1), ("lora", 9), ("adalora", 9)])
def test_a_stopped_run_resumes_to_the_same_weights(
    tmp_path: Path, small_backbone: Path, labelled: Path, kind: Any, stop_after: int
) -> None:
    config = config_of(small_backbone)
    if kind == "adalora":
        config = msgspec.structs.replace(config, averaging=0.0, adapter=AdapterSettings(kind=kind, rank=2, alpha=4))
    whole = train(config, tmp_path / "whole", data=[labelled])
    steps = 0

    def cancelled() -> bool:
        nonlocal steps
        steps += 1
        return steps == stop_after

    with pytest.raises(Cancelled):
        train(config, tmp_path / "parts", data=[labelled], cancelled=cancelled)
    assert not (tmp_path / "parts" / "model.json").exists()
    resumed = train(config, tmp_path / "parts", data=[labelled], resume=True)
    one, other = weights_of(whole), weights_of(resumed)
    assert one.keys() == other.keys()
    for name, tensor in one.items():
        assert torch.equal(tensor, other[name]), name
    assert read_model_file(whole).version == read_model_file(resumed).version


_KILLED = """
import sys
from pathlib import Path
import msgspec
from models.training.config import TrainingConfig
from models.training.train import train
config = msgspec.json.decode(Path(sys.argv[1]).read_bytes(), type=TrainingConfig)
train(config, Path(sys.argv[2]), data=[Path(sys.argv[3])])
"""


@pytest.mark.slow
def test_a_killed_run_resumes_to_the_same_weights(tmp_path: Path, small_backbone: Path, labelled: Path) -> None:
    config = config_of(small_backbone, epochs=8, checkpoint_s=0.0, patience=1000)
    whole = train(config, tmp_path / "whole", data=[labelled])
    (tmp_path / "config.json").write_bytes(msgspec.json.encode(config))
    process = subprocess.Popen(
        [sys.executable, "-c", _KILLED, str(tmp_path / "config.json"), str(tmp_path / "parts"), str(labelled)],
        env=os.environ | {"OMP_NUM_THREADS": str(torch.get_num_threads())},
    )
    checkpoint = tmp_path / "parts" / "checkpoint.pt"
    deadline = time.monotonic() + 120
    while not checkpoint.exists() and process.poll() is None and time.monotonic() < deadline:
        time.sleep(0.01)
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert checkpoint.exists()
    assert not (tmp_path / "parts" / "model.json").exists()
    resumed = train(config, tmp_path / "parts", data=[labelled], resume=True)
    one, other = weights_of(whole), weights_of(resumed)
    for name, tensor in one.items():
        assert torch.allclose(tensor, other[name], atol=1e-6), name


def test_a_run_is_not_overwritten_or_resumed_with_another_config(
    tmp_path: Path, small_backbone: Path, labelled: Path
) -> None:
    config = config_of(small_backbone, epochs=1)
    train(config, tmp_path / "out", data=[labelled])
    with pytest.raises(ConfigurationError, match="--resume"):
        train(config, tmp_path / "out", data=[labelled])
    other = msgspec.structs.replace(config, learning_rate=1e-4)
    with pytest.raises(InputError, match="another config"):
        train(other, tmp_path / "out", data=[labelled], resume=True)
    (tmp_path / "out" / "checkpoint.pt").write_bytes(b"torn")
    with pytest.raises(InputError, match="damaged"):
        train(config, tmp_path / "out", data=[labelled], resume=True)


def test_a_bad_row_stops_before_the_first_step(tmp_path: Path, small_backbone: Path) -> None:
    bad = tmp_path / "bad.jsonl"
    bad.write_text('{"text": "Fine", "sentiment": "neutral"}\n{"text": "Fine", "sentiment": "splendid"}\n')
    seen: list[int] = []
    with pytest.raises(InputError, match="line 2"):
        train(
            config_of(small_backbone),
            tmp_path / "out",
            data=[bad],
            progress=lambda stage, done, total, note: seen.append(done),
        )
    assert not seen


def test_early_stopping_ends_a_run(tmp_path: Path, small_backbone: Path, labelled: Path) -> None:
    seen: list[tuple[int, int]] = []
    config = config_of(small_backbone, epochs=30, learning_rate=1e-9, patience=2, validations_per_epoch=1)
    train(
        config,
        tmp_path / "out",
        data=[labelled],
        progress=lambda stage, done, total, note: seen.append((done, total)),
    )
    assert seen[-1][0] < seen[-1][1] / 2


@pytest.mark.parametrize("kind", ["cross", "concat", "pool"])
def test_the_fusion_is_trained_on_any_image_encoder(
    tmp_path: Path, small_backbone: Path, labelled: Path, small_vision: Path, kind: Any
) -> None:
    config = config_of(
        small_backbone,
        epochs=1,
        vision_backbone=str(small_vision),
        fusion=kind,
        vision_adapter=AdapterSettings(rank=2, alpha=4) if kind == "cross" else AdapterSettings(kind="none"),
        fusion_stage=FusionStage(pictures=24, epochs=1, batch=8),
    )
    out = train(config, tmp_path / "out", data=[labelled])
    file = read_model_file(out)
    assert {"pairs.text_alone.accuracy", "pairs.chart_alone.accuracy", "pairs.both.accuracy"} <= file.metrics.keys()
    found = load_model(out, device="cpu").predict([Row("Firm1 surges", image=picture()), Row("Firm1 surges")])
    assert found.p_chart[0] > 0
    assert found.p_chart[1] == 0


def test_fine_tuning_moves_a_model_towards_its_rows(tmp_path: Path, small_backbone: Path, labelled: Path) -> None:
    base = train(config_of(small_backbone, epochs=1), tmp_path / "base", data=[labelled])
    rows = [LabelledText(text=f"Firm{n} zigzags again", sentiment="negative", part="train") for n in range(30)]
    before = {path.name: path.read_bytes() for path in base.glob("*.safetensors")}
    out = fine_tune(base, rows + read_labelled(labelled), tmp_path / "tuned", epochs=6, seed=1, learning_rate=1e-2)
    asked = [Row("Firm7 zigzags again")]
    old, new = load_model(base, device="cpu"), load_model(out, device="cpu")
    assert new.predict(asked).sentiment[0, 0] > old.predict(asked).sentiment[0, 0] + 0.1
    assert new.version != old.version
    assert before == {path.name: path.read_bytes() for path in base.glob("*.safetensors")}


def test_the_fusion_alone_can_be_trained_anew(
    tmp_path: Path, small_backbone: Path, labelled: Path, small_vision: Path
) -> None:
    base = train(config_of(small_backbone, epochs=1), tmp_path / "base", data=[labelled])
    config = config_of(
        small_backbone,
        base=str(base),
        epochs=0,
        vision_backbone=str(small_vision),
        fusion_stage=FusionStage(pictures=24, epochs=1, batch=8),
    )
    out = train(config, tmp_path / "out", data=[labelled])
    asked = [Row("Firm1 profit surges"), Row("Firm1 profit plunges", (0, 5))]
    old, new = (load_model(folder, device="cpu") for folder in (base, out))
    assert torch.allclose(
        torch.from_numpy(old.predict(asked).sentiment), torch.from_numpy(new.predict(asked).sentiment), atol=1e-5
    )
    assert new.predict([Row("Firm1", image=picture())]).p_chart[0] > 0


def test_a_run_can_go_on_from_a_model(tmp_path: Path, small_backbone: Path, labelled: Path) -> None:
    base = train(config_of(small_backbone, epochs=1), tmp_path / "base", data=[labelled])
    config = config_of(small_backbone, base=str(base), epochs=1, seed=3, learning_rate=1e-7)
    one, other = weights_of(base), weights_of(train(config, tmp_path / "out", data=[labelled]))
    assert one.keys() == other.keys()
    assert any(not torch.equal(tensor, other[name]) for name, tensor in one.items())
    for name, tensor in one.items():
        if not name.startswith("fusion"):
            assert torch.allclose(tensor, other[name], atol=1e-4), name


def test_part_of_the_base_can_be_mixed_in_at_the_end(tmp_path: Path, small_backbone: Path, labelled: Path) -> None:
    base = train(config_of(small_backbone, epochs=1), tmp_path / "base", data=[labelled])
    config = config_of(small_backbone, base=str(base), epochs=1, seed=3)
    before, after = weights_of(base), weights_of(train(config, tmp_path / "after", data=[labelled]))
    mixed = weights_of(train(msgspec.structs.replace(config, base_blend=0.25), tmp_path / "mixed", data=[labelled]))
    for name, tensor in mixed.items():
        if name.startswith(("adapter", "heads")):
            assert torch.allclose(tensor, after[name].lerp(before[name], 0.25), atol=1e-6), name


def test_the_verb_trains_from_a_file_and_prints_the_figures(
    tmp_path: Path, small_backbone: Path, labelled: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "tiny.toml"
    path.write_text(
        f'name = "tiny"\nsets = []\ntext_backbone = "{small_backbone}"\nvision_backbone = ""\nepochs = 1\n'
        "[adapter]\nrank = 2\n"
    )
    train_verb(config=str(path), out_dir=tmp_path / "out", data=[labelled], json_output=True)
    printed = json.loads(capsys.readouterr().out)
    assert printed["version"] == read_model_file(tmp_path / "out").version
    assert 0 <= printed["metrics"]["rows.sentiment.accuracy"] <= 1


def test_fine_tuning_needs_rows(tmp_path: Path, small_model: Path) -> None:
    with pytest.raises(InputError):
        fine_tune(small_model, [], tmp_path / "tuned")


@pytest.mark.parametrize(
    ("config", "name"),
    [("default", "default"), ("longer", "default"), ("fusion", "default"), ("research", "research")],
)
def test_shipped_configs_are_valid(config: str, name: str) -> None:
    assert load_config(config).name == name


def test_a_run_on_non_commercial_data_keeps_the_fusion_and_says_so(
    tmp_path: Path, small_backbone: Path, labelled: Path, small_vision: Path
) -> None:
    base = train(
        config_of(
            small_backbone,
            epochs=1,
            vision_backbone=str(small_vision),
            fusion_stage=FusionStage(pictures=24, epochs=1, batch=8),
        ),
        tmp_path / "base",
        data=[labelled],
    )
    own = tmp_path / "phrasebank.jsonl"
    # Texts that differ in more than figures, or all would be near-duplicates of one part.
    words = "amber birch cedar delta ember fjord grove hazel islet jetty kelp lotus maple north".split()  # noqa: SIM905
    rows = [
        {"text": f"{one} {other} {one[::-1]} sales rose", "sentiment": "positive", "score": 0.5, "part": part}
        for one, other, part in zip(words[:9], words[5:], ("train", "validation", "test") * 3, strict=True)
    ]
    own.write_text("\n".join(json.dumps(row) for row in rows))
    config = config_of(small_backbone, name="research", base=str(base), epochs=1, fusion_stage=FusionStage(epochs=0))
    out = train(config, tmp_path / "out", data=[own], recipe="research")
    file, card = read_model_file(out), (out / "README.md").read_text()
    assert file.data == ("rows", "phrasebank")
    assert file.vision_backbone == str(small_vision)
    assert "phrasebank.score.mse" in file.metrics
    assert torch.equal(load_file(base / "fusion.safetensors")["null"], load_file(out / "fusion.safetensors")["null"])
    assert load_model(out, device="cpu").predict([Row("Firm1", image=picture())]).p_chart[0] > 0
    assert "license: cc-by-nc-sa-3.0" in card
    assert "non-commercial" in card
    assert "sentiment-monitor train --config research --data FILES" in card


def test_a_tracker_that_is_not_there_is_named_before_the_run(
    tmp_path: Path, small_backbone: Path, labelled: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "mlflow", None)
    with pytest.raises(ConfigurationError, match="mlflow"):
        train(config_of(small_backbone, trackers=("mlflow",)), tmp_path / "out", data=[labelled])
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("epochs = 0", "epochs"),
        ("base = 'default'\nepochs = -1", "epochs"),
        ("epoch = 3", "epoch"),
        ("learning_rate = 'fast'", "learning_rate"),
        ("= broken", "not valid"),
        ("[adapter]\nkind = 'lorax'", "adapter"),
        ("set_share = 0.0", "set_share"),
        ("test_share = 0.9\nvalidation_share = 0.2", "test_share"),
        ("[fusion_stage]\nepochs = 0", "fusion_stage"),
        ("trackers = ['paper']", "trackers"),
        ("averaging = 0.9\n[adapter]\nkind = 'adalora'", "averaging"),
        ("[vision_adapter]\nkind = 'adalora'", "vision_adapter"),
    ],
)
def test_a_wrong_config_is_one_sentence(tmp_path: Path, text: str, message: str) -> None:
    path = tmp_path / "c.toml"
    path.write_text(text)
    with pytest.raises(ConfigurationError, match=message):
        load_config(str(path))


def test_an_unknown_config_names_those_known() -> None:
    with pytest.raises(ConfigurationError) as caught:
        load_config("no-such-config")
    assert "default" in caught.value.hint
