"""Lessons, heads and the stage that trains the networks, on a few scenes."""

from pathlib import Path

import numpy as np
import pytest
import torch
from transformers import CLIPTokenizer

from example.demo_model.binding import BindingHeads, Labels
from example.demo_model.corpus import HINTED, UNLABELLED, Corpus
from example.demo_model.diffusion import HALF_SIZE, DiffusionStage, Recipe, with_average
from example.demo_model.drawing import edges
from example.demo_model.lessons import Encoded, Lessons, tokenised
from example.demo_model.networks import CHANNELS, TEXT_LENGTH, TEXT_WIDTH
from example.demo_model.optimiser import Rates
from example.demo_model.outlines import SHAPES
from example.demo_model.palette import COLOURS
from example.demo_model.tokenizer import train_tokenizer
from example.demo_model.vae import first_vae

pytestmark = pytest.mark.usefixtures("one_thread")

COUNT, SIZE = 12, 128
CPU = torch.device("cpu")
SMALL = Recipe("half size", 4, Rates(2e-3, 1e-3, warm_up=5), noisy=0.5, clean=0.0, snr_scale=20)


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Corpus:
    return Corpus.render(tmp_path_factory.mktemp("corpus"), COUNT, seed=3, processes=1)


@pytest.fixture(scope="module")
def tokenizer(corpus: Corpus, tmp_path_factory: pytest.TempPathFactory) -> CLIPTokenizer:
    return train_tokenizer(corpus.captions, tmp_path_factory.mktemp("tokenizer"))


@pytest.fixture(scope="module")
def lessons(corpus: Corpus, tokenizer: CLIPTokenizer, tmp_path_factory: pytest.TempPathFactory) -> Lessons:
    cache = tmp_path_factory.mktemp("latents") / "latents.pt"
    return Lessons(corpus, Encoded.of(corpus, SIZE, first_vae(0), cache), tokenizer)


def stage(lessons: Lessons, tokenizer: CLIPTokenizer, recipe: Recipe = SMALL) -> DiffusionStage:
    return DiffusionStage(recipe, *with_average(tokenizer, 0, CPU), lessons, seconds=60, seed=0)


def test_a_batch_has_each_scenes_hint_caption_and_labels(
    lessons: Lessons, corpus: Corpus, tokenizer: CLIPTokenizer
) -> None:
    chosen = np.array([5, 2])
    batch = lessons.batch(chosen, np.array([True, False]), CPU)

    assert batch.latents.shape == (2, 6, SIZE // 4, SIZE // 4)
    assert batch.hints.shape == (2, 3, SIZE, SIZE)
    assert set(batch.hints.unique().tolist()) <= {0.0, 1.0}
    assert torch.equal(batch.tokens[0], tokenised(tokenizer, [corpus.captions[5]])[0])
    assert torch.equal(batch.tokens[1], tokenised(tokenizer, [""])[0])  # its caption was left out
    assert np.array_equal(batch.colours.numpy(), corpus.colours[chosen])


def test_a_smaller_hint_is_of_the_smaller_image_or_has_the_drawings_lines(lessons: Lessons, corpus: Corpus) -> None:
    batch = lessons.batch(np.arange(COUNT), np.full(COUNT, True), CPU)
    for image, hint, inked, found in zip(corpus.images, corpus.hints, corpus.inked, batch.hints, strict=True):
        if inked:
            wanted = np.unpackbits(hint).reshape(SIZE, 2, SIZE, 2).max(axis=(1, 3)) > 0
        else:
            half = image.reshape(SIZE, 2, SIZE, 2, 3).mean(axis=(1, 3)).round().astype(np.uint8)
            wanted = edges(half, *HINTED)
        assert np.mean((found[0].numpy() > 0) == wanted) > 0.99
    assert 0 < corpus.inked.sum() < COUNT


def test_words_point_at_their_tokens(lessons: Lessons, corpus: Corpus, tokenizer: CLIPTokenizer) -> None:
    everything = np.arange(COUNT)
    batch = lessons.batch(everything, np.full(COUNT, True), CPU)

    assert len(batch.words) == sum(map(len, corpus.words)) > 0
    for row, token, colour, kind in batch.words.tolist():
        noun = tokenizer.convert_ids_to_tokens(int(batch.tokens[row, token])).removesuffix("</w>")
        matching = [word for word in corpus.words[row] if word.noun == noun]
        assert [(word.colour, word.kind) for word in matching] == [(COLOURS[colour], SHAPES[kind - 1])]
    assert not len(lessons.batch(everything, np.full(COUNT, False), CPU).words)


def test_words_that_are_no_single_token_are_left_out(corpus: Corpus, tmp_path: Path) -> None:
    knows_less = train_tokenizer(["a red"], tmp_path / "tokenizer")
    encoded = Encoded.of(corpus, SIZE, first_vae(0), tmp_path / "latents.pt")
    lessons = Lessons(corpus, encoded, knows_less)

    assert not len(lessons.batch(np.arange(COUNT), np.full(COUNT, True), CPU).words)


def test_latents_are_encoded_once(corpus: Corpus, tmp_path: Path) -> None:
    cache = tmp_path / "latents.pt"
    first = Encoded.of(corpus, SIZE, first_vae(0), cache)
    again = Encoded.of(corpus, SIZE, first_vae(1), cache)

    assert torch.equal(first.latents, again.latents)
    assert first.latents.dtype == torch.float16


def test_the_loss_falls(lessons: Lessons, tokenizer: CLIPTokenizer) -> None:
    trained = stage(lessons, tokenizer)
    losses = [trained.step(0.0) for _ in range(96)]

    for name in ("v", "kind", "colour"):
        first, last = (np.mean([each[name] for each in part]) for part in (losses[:8], losses[-8:]))
        assert last < 0.9 * first, name


def test_a_stage_goes_on_as_if_it_had_not_stopped(lessons: Lessons, tokenizer: CLIPTokenizer, tmp_path: Path) -> None:
    whole, before, after = (stage(lessons, tokenizer) for _ in range(3))
    expected = [whole.step(0.1 * number) for number in range(4)]
    before.step(0.0), before.step(0.1)
    torch.save(before.state_dict(), tmp_path / "state.pt")
    after.load_state_dict(torch.load(tmp_path / "state.pt", weights_only=True))

    assert [after.step(0.2), after.step(0.3)] == [pytest.approx(losses, rel=1e-3) for losses in expected[2:]]
    for one, other in zip(whole.averaged.parameters(), after.averaged.parameters(), strict=True):
        assert torch.allclose(one, other, atol=1e-4)


def test_the_average_follows_the_weights(lessons: Lessons, tokenizer: CLIPTokenizer) -> None:
    trained = stage(lessons, tokenizer)
    name = "unet.conv_in.weight"
    start = trained.averaged.state_dict()[name].clone()
    for _ in range(3):
        trained.step(0.0)
    now, average = trained.networks.state_dict()[name], trained.averaged.state_dict()[name]

    assert 0 < (average - start).abs().mean() < (now - start).abs().mean()


def test_a_closed_gate_leaves_the_hint_out(lessons: Lessons, tokenizer: CLIPTokenizer) -> None:
    trained = stage(lessons, tokenizer)
    for _ in range(8):  # the hint's last layer starts at zero, and so do the ControlNet's
        trained.step(0.5)
    batch = lessons.batch(np.array([0, 0]), np.array([True, True]), CPU)
    hints = torch.stack([batch.hints[0], 1 - batch.hints[0]])
    steps = torch.tensor([500, 500])
    with torch.no_grad():
        shut = trained.networks(batch.latents, steps, batch.tokens, hints, torch.zeros(2)).predicted
        opened = trained.networks(batch.latents, steps, batch.tokens, hints, torch.ones(2)).predicted

    assert torch.allclose(shut[0], shut[1], atol=1e-6)
    assert not torch.allclose(opened[0], opened[1], atol=1e-6)


def test_many_timesteps_are_those_where_colours_are_decided(lessons: Lessons, tokenizer: CLIPTokenizer) -> None:
    drawn = stage(lessons, tokenizer, HALF_SIZE)._timesteps(20_000)

    assert drawn.min() >= 0
    assert drawn.max() == 999
    assert np.mean(drawn >= 650) == pytest.approx(0.08 + 0.92 * (0.5 + 0.5 * 0.35), abs=0.02)


# -------------------------------------------------------------------------------------------------------------- heads


def features(size: int) -> torch.Tensor:
    return torch.randn(2, CHANNELS[2], size, size, generator=torch.Generator().manual_seed(1))


def losses(heads: BindingHeads, labels: Labels, size: int = 16) -> dict[str, float]:
    heads._before = heads._after = features(size)
    states = torch.ones(2, TEXT_LENGTH, TEXT_WIDTH)
    return {name: loss.item() for name, loss in heads.losses(states, features(size), labels).items()}


def labelled(kind: int, colour: int, words: int = 1, seen: bool = True) -> Labels:
    cells = torch.full((2, 16, 16), 0)
    rows = torch.tensor([[0, 3, colour, kind]] * words, dtype=torch.int64).view(-1, 4)
    return Labels(cells + kind, cells + colour, rows, torch.tensor([seen, seen]))


def test_untrained_heads_guess() -> None:
    torch.manual_seed(0)
    found = losses(BindingHeads(), labelled(kind=3, colour=5))

    assert found["colour"] == pytest.approx(np.log(len(COLOURS)), rel=0.3)
    assert found["kind"] == pytest.approx(2 * np.log(1 + len(SHAPES)), rel=0.3)


def test_unlabelled_pixels_cost_nothing() -> None:
    found = losses(BindingHeads(), labelled(kind=UNLABELLED, colour=UNLABELLED, words=0))

    assert found == {"word": 0.0, "kind": 0.0, "colour": 0.0}


def test_an_image_without_caption_or_control_teaches_the_unet_no_colours() -> None:
    assert losses(BindingHeads(), labelled(kind=3, colour=5, seen=False))["colour"] == 0.0


def test_coarser_features_have_labels_where_finer_ones_agree() -> None:
    fine = torch.tensor([[[1, 1, 2, 3], [1, 1, 2, 2], [4, 4, 5, 5], [4, 4, 5, 5]]])

    assert BindingHeads._matched(fine, torch.zeros(1, 1, 2, 2)).tolist() == [[[1, UNLABELLED], [4, 5]]]
    assert torch.equal(BindingHeads._matched(fine, torch.zeros(1, 1, 4, 4)), fine)
