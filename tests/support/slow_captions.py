"""Captions by NumPy alone: the equations of the model and an obvious beam search, one caption at a time."""

from __future__ import annotations

from collections import Counter
from itertools import pairwise
from typing import Any

import numpy as np

from cutline.tasks.decoding.beam_search import NEEDS_MORE
from cutline.tasks.decoding.captioner import Captioner
from cutline.tasks.models.content_embedding import SAME
from cutline.tasks.models.fusion import REGION_LENGTH


class SlowCaptioner:
    """The weights of a Captioner, in float64, and nothing else of it."""

    def __init__(self, captioner: Captioner) -> None:
        def weights(layer: Any) -> list[np.ndarray]:
            return [np.asarray(values, np.float64) for values in layer.get_weights()]

        self.tokens = captioner.vocabulary
        self.settings = captioner.fusion.settings
        (self.embeddings,) = weights(captioner.language_model.embedding)
        self.kernel, self.recurrent, self.bias = weights(captioner.language_model.lstm)
        self.layers = {name: weights(layer) for name, layer in captioner.fusion.layers.items()}
        self.content_embedding = captioner.fusion.content_embedding
        grams = self.content_embedding.grams.tolist() if self.content_embedding else []
        self.grams = {tuple(i for i in gram if i): n for n, gram in enumerate(grams)}

    def captions(
        self,
        photo: np.ndarray,
        beam: int,
        max_tokens: int,
        cider_weight: float = 0.0,
        word_penalty: float = 0.0,
    ) -> list[tuple[list[str], float]]:
        """The best captions of one photograph, (R, C), as (tokens, score), best first."""
        photo = photo.astype(np.float64)
        regions = photo * REGION_LENGTH / np.sqrt((photo**2).sum(-1, keepdims=True) + 1e-6)
        content_embedding = self._gist(photo)
        about = (
            np.zeros(self.settings.hidden_size)
            if content_embedding is None
            else self._dense("content_embedding", content_embedding)
        )
        nothing = np.zeros(len(self.recurrent))
        # rank, broken rules, log-probability, tokens, state, cell
        beams = [(0.0, 0, 0.0, ["<start>"], nothing, nothing)]
        for step in range(max_tokens + 1):
            grown = []
            for one in beams:
                if one[3][-1] == "<end>":
                    grown.append(one)
                else:
                    longer = self._grown(one, regions, about, step, max_tokens)
                    grown += sorted(longer, key=lambda b: -b[0])[:beam]
            if cider_weight and content_embedding is not None:
                grown = [
                    (self._rank(one, content_embedding, cider_weight, word_penalty), *one[1:])
                    for one in grown
                ]
            beams = sorted(grown, key=lambda b: -b[0])[:beam]
        if cider_weight and content_embedding is not None:
            beams = sorted(beams, key=lambda b: (b[1], -self._worth(b[3], content_embedding, word_penalty)))
        return [(_words(said), total / (len(said) - 1)) for _, _, total, said, _, _ in beams]

    def _rank(
        self, one: Any, content_embedding: np.ndarray, cider_weight: float, word_penalty: float
    ) -> float:
        _, broken, total, said, _, _ = one
        tokens = len(said) - 1  # <end> counts, <start> does not
        expected = self._expected_cider(said, content_embedding) - word_penalty * tokens
        return total / tokens - 1000 * broken + cider_weight * expected

    def _worth(self, said: list[str], content_embedding: np.ndarray, word_penalty: float) -> float:
        assert self.content_embedding
        words = len(_words(said))
        return (
            self._expected_cider(said, content_embedding) * self.content_embedding.length_weight[words]
            - word_penalty * words
        )

    def _expected_cider(self, said: list[str], content_embedding: np.ndarray) -> float:
        """10 times the mean cosine, over n-grams of 1 to 4 words, to what is predicted of them."""
        assert self.content_embedding
        predicted = self.content_embedding.mean + self.content_embedding.directions @ content_embedding
        words, cosines = [self.tokens.index(word) for word in _words(said)], []
        for n in range(1, 5):
            shared = squares = 0.0
            for gram, times in Counter(tuple(words[i : i + n]) for i in range(len(words) - n + 1)).items():
                number = self.grams.get(gram)
                idf = (
                    self.content_embedding.unknown_idf
                    if number is None
                    else self.content_embedding.idf[number]
                )
                said_once = n == 1 and self.tokens[gram[0]] not in NEEDS_MORE  # by people
                shared += idf * (0 if number is None else predicted[number]) * (1 if said_once else times)
                squares += idf**2 * (times**2 if said_once else times)
            cosines.append(shared / squares**0.5 if squares else 0.0)
        return 10 * sum(cosines) / 4

    def _grown(
        self, one: Any, regions: np.ndarray, about: np.ndarray, step: int, max_tokens: int
    ) -> list[Any]:
        """A caption by each token that may follow."""
        _, broken, total, said, state, cell = one
        state, cell = self._read(said[-1], state, cell)
        gained = self._log_probabilities(regions, about, state)
        pairs, grown = set(pairwise(said[1:])), []
        for token, gain in zip(self.tokens, gained, strict=True):
            if token in ("<pad>", "<start>", "<unk>"):
                continue
            if (token == "<end>" and step == 0) or (token != "<end>" and step == max_tokens):
                continue
            faults = int(token == said[-1])
            may_repeat = said[-1] in NEEDS_MORE and token in NEEDS_MORE and said[-3:-1] != [said[-1], token]
            overused = token not in NEEDS_MORE and said.count(token) >= 2
            faults += ((said[-1], token) in pairs and not may_repeat) or overused
            faults += token == "<end>" and said[-1] in NEEDS_MORE
            faults += token in NEEDS_MORE and step == max_tokens - 1
            longer, whole, faulty = [*said, token], total + gain, broken + faults
            grown.append((whole / (len(longer) - 1) - 1000 * faulty, faulty, whole, longer, state, cell))
        return grown

    def _read(self, token: str, state: np.ndarray, cell: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """One step of the LSTM."""
        read = self.embeddings[self.tokens.index(token)]
        into, keep, new, out = np.split(read @ self.kernel + state @ self.recurrent + self.bias, 4)
        cell = _sigmoid(keep) * cell + _sigmoid(into) * np.tanh(new)
        return _sigmoid(out) * np.tanh(cell), cell

    def _dense(self, name: str, values: np.ndarray) -> np.ndarray:
        kernel, *bias = self.layers[name]
        return values @ kernel + sum(bias)

    def _gist(self, photo: np.ndarray) -> np.ndarray | None:
        if not self.content_embedding:
            return None
        pooled = photo.mean(0) / np.linalg.norm(photo.mean(0))
        distances = ((pooled - self.content_embedding.kernel.landmarks) ** 2).sum(1)
        alike = np.exp(-distances / self.content_embedding.kernel.bandwidth)
        found = alike @ self.content_embedding.weights + self.content_embedding.offset
        same = alike >= SAME
        if same.any():
            found = found + self.content_embedding.corrections[same].mean(0)
        return np.asarray(found)

    def _log_probabilities(self, regions: np.ndarray, about: np.ndarray, state: np.ndarray) -> np.ndarray:
        """ln p of each next token, (V,)."""
        dense = self._dense
        values = dense("value", regions)  # (R, hidden)
        seen = values[0]
        if self.settings.kind == "attention":
            query, keys = dense("query", state), dense("key", regions)
            of_heads = []
            for head in np.split(np.arange(len(query)), self.settings.heads):
                share = np.exp(keys[:, head] @ query[head] / np.sqrt(len(head)))
                of_heads.append(share / share.sum() @ values[:, head])
            seen = np.concatenate(of_heads)
        change = dense("change", np.maximum(dense("state", state) + seen + about, 0))
        logits = dense("output", dense("projection", state) + change)
        logits -= logits.max()
        return logits - np.log(np.exp(logits).sum())


def _words(said: list[str]) -> list[str]:
    return [token for token in said if token not in ("<start>", "<end>")]


def _sigmoid(x: np.ndarray) -> np.ndarray:
    return 1 / (1 + np.exp(-x))
