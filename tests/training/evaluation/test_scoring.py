"""Scores of tokens against brute force, and windows against their definition."""

import math
from functools import partial

import numpy as np
import pytest
import torch
from evaluated import nats_by_hand, small_model

from ml.blocks import DecoderBlock, Repeat
from ml.data import ByteTokenizer, Document
from ml.data.sequences.document_begin import Begin
from ml.data.sequences.document_separator import Separator
from ml.layers import Attention, Embeddings, MixtureOfExperts, PositionEmbedding
from ml.models import LanguageModel, materialize
from ml.training import Float32
from ml.training.evaluation import scoring
from ml.training.evaluation.scoring import Piece, score, windows
from ml.training.evaluation.texts import TextLoss, measure_texts, total

CPU = torch.device("cpu")


@pytest.mark.parametrize(("context", "stride"), [(1, 1), (4, 1), (5, 2), (8, 8), (8, 3), (100, 50)])
@pytest.mark.parametrize("length", [1, 2, 5, 9, 24, 25])
def test_windows_predict_each_token_once_from_enough(length, context, stride):
    tokens = np.arange(length + 1)
    predicted, first_end = [], min(context, length)
    for piece in windows(tokens, context, stride):
        assert 1 <= piece.num_scored <= len(piece.tokens) - 1 <= context
        for target in piece.tokens[-piece.num_scored :]:
            predicted.append(int(target))
            num_seen = int(target - piece.tokens[0])
            enough = target if target <= first_end else context - stride + 1
            assert num_seen >= min(enough, target)
    assert predicted == list(range(1, length + 1))


def test_scores_are_the_sums_of_single_tokens(monkeypatch):
    monkeypatch.setattr(scoring, "_LOGITS_AT_ONCE", 256 * 5)  # several parts of the vocabulary projection
    model, generator = small_model(), np.random.default_rng(0)
    texts = [generator.integers(0, 256, size) for size in (2, 17, 9, 9, 30, 4)]
    greedy = torch.tensor([[7]])
    for _ in range(5):
        with torch.no_grad():
            greedy = torch.cat((greedy, model(greedy)[:, -1:].argmax(-1)), dim=1)
    pieces = [*(Piece(text, min(len(text) - 1, 6)) for text in texts), Piece(greedy[0].numpy(), 3)]
    found = score(model, pieces, 3, Float32(), CPU)
    for piece, one in zip(pieces, found, strict=True):
        places = range(len(piece.tokens) - piece.num_scored, len(piece.tokens))
        costs = [nats_by_hand(model, piece.tokens[:place].tolist(), int(piece.tokens[place])) for place in places]
        assert one.log_likelihood == pytest.approx(-sum(nats for nats, _ in costs), rel=1e-5)  # float32 logits
        assert one.is_greedy == all(best == piece.tokens[place] for place, (_, best) in zip(places, costs, strict=True))
    assert [one.is_greedy for one in found] == [False] * len(texts) + [True]


def test_experts_do_not_process_the_padding_of_a_batch():
    experts = partial(MixtureOfExperts, num_experts=3, experts_per_token=2, grouped=False)
    block = partial(DecoderBlock, mixer=partial(Attention, num_heads=2), mlp=experts)
    model = LanguageModel(vocab_size=256, hidden_size=16, decoder=partial(Repeat, num_blocks=1, block=block))
    layer, rows = materialize(model).eval().decoder.blocks[0].mlp, []
    for expert in layer.experts.in_order:
        expert.register_forward_pre_hook(lambda module, args: rows.append(args[0].shape[-2]))
    pieces = [Piece(np.arange(length), 1) for length in (9, 4, 2)]
    score(model, pieces, 3, Float32(), CPU)
    assert sum(rows) == 2 * (8 + 3 + 1)


TEXT = "Ünder the bridge, naïve otters. " * 2


@pytest.mark.parametrize("separator", ["\0", ""])
@pytest.mark.parametrize(("context", "stride"), [(200, 100), (16, 5)])
def test_bits_per_byte_of_a_text_are_those_of_its_bytes_one_by_one(separator, context, stride):
    model, documents = small_model(), [Document("a", TEXT), Document("b", "x"), Document("c", "")]
    losses = list(
        measure_texts(
            documents, model, ByteTokenizer(), Begin.after(Separator.of(ByteTokenizer(), separator)),
            context=context, stride=stride, batch_size=4, precision=Float32(), device=CPU,
        )
    )  # fmt: skip
    assert [loss.name for loss in losses] == (["a", "b"] if separator else ["a"])
    tokens = [*separator.encode(), *TEXT.encode()]
    nats, end = 0.0, min(context, len(tokens) - 1)
    for place in range(1, len(tokens)):
        while place > end:
            end = min(end + stride, len(tokens) - 1)
        nats += nats_by_hand(model, tokens[max(0, end - context) : place], tokens[place])[0]
    assert losses[0].num_tokens == losses[0].num_bytes == len(tokens) - 1
    assert losses[0].loss == pytest.approx(nats / (len(tokens) - 1), rel=1e-5)
    assert losses[0].bits_per_byte == pytest.approx(nats / math.log(2) / (len(tokens) - 1), rel=1e-5)
    assert losses[0].perplexity == pytest.approx(math.exp(nats / (len(tokens) - 1)), rel=1e-4)


def test_all_texts_together_count_each_token_alike():
    both = total([TextLoss("a", 3, 12, 6.0), TextLoss("b", 1, 4, 4.0)])
    assert both == TextLoss("all", 4, 16, 10.0)
    assert (both.loss, both.bits_per_byte) == (2.5, 10 / math.log(2) / 16)
    assert TextLoss("a", 1, 1, 5000.0).perplexity == math.inf


def test_learned_positions_are_counted_from_the_start_of_each_window():
    model = small_model(
        embeddings=lambda *sizes: Embeddings(*sizes, position=lambda *s: PositionEmbedding(*s, num_positions=8))
    )
    tokens = np.arange(20)
    scores = score(model, list(windows(tokens, 8, 4)), 2, Float32(), CPU)
    assert len(scores) == 4
    assert all(math.isfinite(one.log_likelihood) for one in scores)
