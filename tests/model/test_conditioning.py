from __future__ import annotations

import pytest
import torch

from dcdm_cli.model.conditioning import (
    NULL_DIFFICULTY,
    EncoderConfig,
    fourier_features,
    join_tokens,
)
from dcdm_cli.model.encoder import DifficultyEncoder

KINDS = ("onehot", "learned")


def encoder(**changes: object) -> DifficultyEncoder:
    torch.manual_seed(0)
    return DifficultyEncoder(EncoderConfig(**{"classes": 3, "dim": 16, "hidden": 8} | changes))  # type: ignore[arg-type]


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("tokens", [1, 4])
def test_each_image_gets_its_tokens(kind: str, tokens: int) -> None:
    made = encoder(label_embedding=kind, tokens=tokens)(torch.tensor([0, 2]), torch.tensor([0.0, 1.0]))
    assert made.shape == (2, tokens, 16)
    assert made.dtype == torch.float32


@pytest.mark.parametrize("kind", KINDS)
def test_label_and_difficulty_both_change_the_tokens(kind: str) -> None:
    made = encoder(label_embedding=kind)(torch.tensor([0, 1, 0]), torch.tensor([0.5, 0.5, 0.6]))
    assert not torch.allclose(made[0], made[1])
    assert not torch.allclose(made[0], made[2])


def test_no_difficulty_yields_the_null_token_whatever_the_label() -> None:
    network = encoder(tokens=2)
    made = network(torch.tensor([0, 2, -1]), torch.full((3,), NULL_DIFFICULTY))
    assert torch.equal(made, network.null.expand(3, 2, 16))


def test_an_image_does_not_depend_on_its_neighbours() -> None:
    network = encoder()
    together = network(torch.tensor([0, 1, 2]), torch.tensor([0.2, NULL_DIFFICULTY, 0.9]))
    assert torch.allclose(network(torch.tensor([2]), torch.tensor([0.9]))[0], together[2], atol=1e-6)


def test_only_the_learned_label_has_an_embedding_table() -> None:
    names = {kind: {name for name, _ in encoder(label_embedding=kind).named_parameters()} for kind in KINDS}
    assert names["learned"] - names["onehot"] == {"embedding.weight"}


@pytest.mark.parametrize("kind", KINDS)
def test_every_weight_of_the_encoder_gets_a_gradient(kind: str) -> None:
    network = encoder(label_embedding=kind)
    made = network(torch.tensor([0, 1, 2]), torch.tensor([0.1, 0.9, NULL_DIFFICULTY]))
    (made * torch.randn(made.shape)).sum().backward()
    dead = [name for name, p in network.named_parameters() if p.grad is None or not p.grad.any()]
    assert dead == []


def test_fourier_features_are_the_value_then_sines_then_cosines() -> None:
    features = fourier_features(torch.tensor([0.0, 0.5]), 2)
    assert torch.allclose(features, torch.tensor([[0.0, 0, 0, 1, 1], [0.5, 1, 0, 0, -1]]), atol=1e-6)


def test_append_makes_the_text_longer() -> None:
    text, tokens = torch.randn(2, 77, 16), torch.randn(2, 3, 16)
    joined = join_tokens(text, tokens, "append")
    assert torch.equal(joined, torch.cat([text, tokens], 1))
    assert joined.shape == (2, 80, 16)


def test_replace_keeps_the_length_and_overwrites_the_last_tokens() -> None:
    text, tokens = torch.randn(2, 77, 16), torch.randn(2, 3, 16)
    joined = join_tokens(text, tokens, "replace")
    assert joined.shape == text.shape
    assert torch.equal(joined[:, :74], text[:, :74])
    assert torch.equal(joined[:, 74:], tokens)


def test_joining_keeps_the_dtype_of_the_text() -> None:
    assert join_tokens(torch.zeros(1, 4, 8).half(), torch.zeros(1, 1, 8), "append").dtype == torch.float16


@pytest.mark.parametrize("change", [{"mode": "prepend"}, {"label_embedding": "hashed"}])
def test_an_unknown_word_in_the_configuration_is_refused(change: dict[str, str]) -> None:
    with pytest.raises(ValueError, match=next(iter(change.values()))):
        encoder(**change)
