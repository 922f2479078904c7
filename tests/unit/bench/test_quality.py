"""`qwell quality`: divergence, agreement and perplexity against values known from elsewhere."""

from __future__ import annotations

import json
import math
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from checkpoints import make_checkpoint
from hypothesis import given, settings
from hypothesis import strategies as st
from tiny_tokenizers import tiny_backend

from qwell import LLM
from qwell.bench.quality.divergence import compare, join, summary
from qwell.bench.quality.run import compare_formats, windows
from qwell.cli import main
from qwell.runtime.engine_options import EngineOptions
from qwell.runtime.errors import RequestError

TEXT = "Once upon a time there was a kernel that summed in no fixed order. " * 4


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("checkpoint")
    backend = tiny_backend()
    make_checkpoint(path, "qwen3", vocab_size=backend.get_vocab_size() + 5)
    backend.save(str(path / "tokenizer.json"))
    return path


def logits_of(*rows: tuple[float, ...]) -> torch.Tensor:
    """Logits of these probabilities, moved: softmax does not mind."""
    return torch.tensor(rows).log() + 3.0


def test_known_probabilities_have_the_known_divergence() -> None:
    reference = logits_of((0.5, 0.25, 0.25), (0.5, 0.5, 0.0))
    model = logits_of((0.25, 0.5, 0.25), (0.25, 0.25, 0.5))
    found = compare(reference, model, torch.tensor([1, 0]))
    expected = [0.25 * math.log(2), math.log(2)]
    assert found.divergence.tolist() == pytest.approx(expected, rel=1e-6)
    assert found.loss.tolist() == pytest.approx([math.log(2), math.log(4)], rel=1e-6)
    assert found.reference_loss.tolist() == pytest.approx([math.log(4), math.log(2)], rel=1e-6)
    assert found.agrees.tolist() == [False, False]


def test_it_is_the_reference_that_weighs() -> None:
    one, other = logits_of((0.9, 0.1)), logits_of((0.5, 0.5))
    next_ids = torch.tensor([0])
    forward = compare(one, other, next_ids).divergence.item()
    assert forward == pytest.approx(0.9 * math.log(1.8) + 0.1 * math.log(0.2), rel=1e-6)
    assert compare(other, one, next_ids).divergence.item() > 1.3 * forward


@settings(deadline=None)
@given(st.integers(1, 70), st.integers(1, 40), st.integers(0, 2**32 - 1))
def test_pieces_and_the_whole_are_alike_and_equal_to_torch(
    positions: int, vocabulary: int, seed: int
) -> None:
    draw = torch.Generator().manual_seed(seed)
    reference = torch.randn(positions, vocabulary, generator=draw) * 4
    model = reference + torch.randn(positions, vocabulary, generator=draw)
    next_ids = torch.randint(0, vocabulary, (positions,), generator=draw)
    found = compare(reference, model, next_ids)
    p, q = reference.double().log_softmax(-1), model.double().log_softmax(-1)
    expected = F.kl_div(q, p, reduction="none", log_target=True).sum(-1)
    # Terms of at most 40 nats, in float64.
    torch.testing.assert_close(found.divergence, expected, rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(
        found.loss, F.cross_entropy(model.double(), next_ids, reduction="none")
    )
    cut = positions // 2
    pieces = [
        compare(reference[part], model[part], next_ids[part])
        for part in (slice(0, cut), slice(cut, None))
        if len(next_ids[part])
    ]
    assert torch.equal(join(pieces).divergence, found.divergence)


def test_the_same_logits_do_not_diverge_at_all() -> None:
    logits = torch.randn(40, 300) * 10
    quality = summary(compare(logits, logits, torch.zeros(40, dtype=torch.int64)))
    assert quality.mean_divergence == quality.p99_divergence == 0.0
    assert quality.top1_agreement == 1.0
    assert quality.perplexity_ratio == 1.0


def test_figures_of_many_positions() -> None:
    # 90 positions without a difference, 10 that put an eighth where the reference has a half.
    even, changed = (0.5, 0.5), (0.125, 0.875)
    reference = logits_of(*[even] * 100)
    model = logits_of(*[even] * 90, *[changed] * 10)
    quality = summary(compare(reference, model, torch.zeros(100, dtype=torch.int64)))
    each = 0.5 * math.log(4) + 0.5 * math.log(0.5 / 0.875)
    assert quality.positions == 100
    assert quality.mean_divergence == pytest.approx(each / 10, rel=1e-5)
    assert quality.mean_divergence_error == pytest.approx(each * 0.3 / 10, rel=1e-5)
    assert quality.median_divergence == pytest.approx(0.0, abs=1e-12)
    assert quality.p99_divergence == pytest.approx(each, rel=1e-5)
    assert quality.top1_agreement == 0.9
    assert quality.perplexity_ratio == pytest.approx(4**0.1, rel=1e-5)
    assert quality.perplexity == pytest.approx(2 * 4**0.1, rel=1e-5)


def test_windows_are_whole() -> None:
    assert windows(range(11), 4) == [[0, 1, 2, 3], [4, 5, 6, 7]]
    with pytest.raises(RequestError, match="has 11 tokens; at least a window of 12"):
        windows(range(11), 12)


def test_the_second_half_of_each_window_is_predicted(folder: Path) -> None:
    llm = LLM(folder, device="cpu")
    texts = windows(llm.tokenizer.encode(TEXT), 17)
    options = EngineOptions(model=str(folder), device="cpu")
    (row,) = compare_formats(options, "auto", ["auto"], texts)
    losses = [
        F.cross_entropy(llm.logits(text)[8:16], torch.tensor(text[9:17]), reduction="none")
        for text in texts
    ]
    assert row.quality.positions == 8 * len(texts)
    # Means of float32 losses.
    expected = torch.cat(losses).mean().exp().item()
    assert row.quality.perplexity == pytest.approx(expected, rel=1e-5)
    assert row.quality.mean_divergence == 0.0
    assert row.weight_bytes > 0


def test_the_reference_has_the_models_own_cache(folder: Path) -> None:
    texts = windows(LLM(folder, device="cpu").tokenizer.encode(TEXT), 17)
    options = EngineOptions(model=str(folder), device="cpu", kv_cache_dtype="int8")
    (row,) = compare_formats(options, "auto", ["auto"], texts)
    assert row.quality.mean_divergence > 0.0


def test_the_command_prints_a_table_and_writes_json(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    text, written = tmp_path / "text", tmp_path / "out.json"
    text.write_text(TEXT)
    command = f"quality --model {folder} --weights auto --text {text} --window 32 --json {written}"
    assert main(command.split()) == 0
    assert "mean KL" in capsys.readouterr().out
    report = json.loads(written.read_text())
    assert report["reference_weights"] == report["kv_cache_dtype"] == "auto"
    (row,) = report["formats"]
    assert row["weights"] == "auto"
    assert row["quality"]["top1_agreement"] == 1.0


def test_errors_are_one_line(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    text = tmp_path / "text"
    text.write_bytes(b"\xff\xfe")
    command = f"quality --model {folder} --weights auto --text {text}"
    assert main(command.split()) == 1
    error = capsys.readouterr().err
    assert "is not UTF-8" in error
    text.write_text("short")
    assert main(command.split()) == 1
    assert "at least a window of 512" in capsys.readouterr().err
    with pytest.raises(SystemExit):
        main([*command.split(), "--window", "2"])
    assert "--window: must be at least 3" in capsys.readouterr().err
