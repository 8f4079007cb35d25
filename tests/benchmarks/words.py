"""Contests of words: tokens, the language model, the fusion, and captions."""

from __future__ import annotations

import itertools
import math
from typing import TYPE_CHECKING

import numpy as np
import polars as pl

from cutline.schemas.settings import ImageFeaturesSettings, ImagesSettings, PredictionsSettings
from cutline.tasks.text.vocabulary import END, START
from tests.benchmarks import rivals
from tests.benchmarks.harness import OURS, Contest
from tests.benchmarks.places import Finished, Place, nobody, photos_of
from tests.support.slow_captions import SlowCaptioner

if TYPE_CHECKING:
    from cutline.tasks.decoding.captioner import Captioner


TOKENS = 35_000
CAPTIONED_PHOTOS, ONE_BY_ONE, SLOWLY = 202, 8, 16  # as many as a shard has on average
LEARNED_CAPTIONS, HELD_OUT_CAPTIONS, PASSES = 2_000, 500, 12
PAIRED_CAPTIONS, IN_PREFIXES = 1_000, 40


def tokens(place: Place) -> Contest:
    """Captions → tokens, with and without stop words; what ours remembers of words is forgotten first."""
    from cutline.tasks.text import tokenizer
    from cutline.tasks.text.stopwords import load_stopwords

    texts = _texts(place)
    table = pl.DataFrame({"caption_id": [f"{i:032x}" for i in range(len(texts))], "text": texts})
    stopwords = load_stopwords("english")

    def ours() -> pl.DataFrame:
        tokenizer._remembered_parts.cache_clear()
        return tokenizer.tokenize_captions(table, stopwords, nobody)[0]

    def alike(theirs: list[list[str]], content: list[list[str]]) -> float:
        other = pl.DataFrame({"caption_id": table["caption_id"], "theirs": theirs, "content": content})
        both = other.join(ours(), on="caption_id")
        same = (both["theirs"] == both["tokens"]) & (both["content"] == both["content_tokens"])
        return float(same.sum()) / table.height

    def note() -> str:
        plain = alike(*rivals.tokens_by_nltk(texts, stopwords))
        by_our_rules = alike(*rivals.tokens_by_our_rules(texts, stopwords))
        return f"same tokens in {plain:.2%} of captions; by our rules in {by_our_rules:.2%}"

    plainly, by_our_rules = "a loop of nltk.word_tokenize", "the same loop with our rules"
    return Contest(
        name="tokens",
        title=f"tokenizing and stop words, {len(texts):,} captions of {place.name}",
        count=len(texts),
        thing="captions",
        sides={
            OURS: ours,
            plainly: lambda: rivals.tokens_by_nltk(texts, stopwords),
            by_our_rules: lambda: rivals.tokens_by_our_rules(texts, stopwords),
        },
        targets={plainly: 3, by_our_rules: 3},
        note=note,
    )


def language_model(place: Place) -> Contest:
    """Passes over training captions; both go on where they were, and their perplexities are compared."""
    from cutline.tasks.models.language_model import build_language_model
    from cutline.tasks.text.encoding import encode
    from cutline.tasks.training.common import make_repeatable
    from cutline.tasks.training.language_model import _Trainer, learning_rates, perplexity

    run = place.finished()
    # More passes than there are rounds: after the last one there is no learning rate to go on with.
    settings = run.settings.language_model.model_copy(update={"epochs": PASSES})
    vocabulary = run.table("vocabulary", "vocabulary")
    tokens = _tokens_of(run, "train").sample(fraction=1, shuffle=True, seed=1)["tokens"]
    held_out = _tokens_of(run, "dev").head(HELD_OUT_CAPTIONS)["tokens"]
    captions = encode(tokens.head(LEARNED_CAPTIONS), vocabulary)
    make_repeatable()
    one, other = (build_language_model(vocabulary.height, settings) for _ in range(2))
    other.model.set_weights(one.model.get_weights())
    trainer = _Trainer(captions, one, settings)
    inputs, targets = rivals.padded_to_the_longest([captions[i] for i in range(len(captions))], START, END)
    steps = -(-len(captions) // settings.batch_size)
    rate = learning_rates(settings.learning_rate, steps * settings.epochs, -(-steps // 4))
    model = rivals.language_model_to_fit(other, settings.dropout, rate)
    epochs, passes = itertools.count(1), itertools.count(1)

    def fit() -> None:
        next(passes)
        model.fit(inputs, targets, sample_weight=targets > 0, batch_size=settings.batch_size, verbose=0)

    def note() -> str:
        ours, theirs = (perplexity(found, held_out, vocabulary) for found in (one, other))
        return f"dev perplexity after {next(passes) - 1} passes: {ours:.1f}, theirs {theirs:.1f}"

    rival = "Keras fit, padded to the longest"
    return Contest(
        name="language_model",
        title=f"a pass of the language model over {len(captions):,} captions of {place.name}",
        count=int((captions.lengths + 1).sum()),
        thing="tokens",
        sides={OURS: lambda: trainer.epoch(next(epochs), nobody), rival: fit},
        targets={rival: 2.5},
        note=note,
    )


def fusion(place: Place) -> Contest:
    """Passes over training captions with their photographs, from the same weights on."""
    from cutline.tasks.models.fusion import build_fusion, start_from
    from cutline.tasks.models.language_model import load_language_model
    from cutline.tasks.training.batches import Pairs
    from cutline.tasks.training.common import make_repeatable
    from cutline.tasks.training.fusion import PHOTOS, _Trainer

    run = place.finished()
    settings, lm_settings = run.settings.fusion, run.settings.language_model
    vocabulary = run.table("vocabulary", "vocabulary")
    make_repeatable()
    (weights,) = run.files("language_model", "language_model.weights.h5")
    words = load_language_model(weights, vocabulary.height, lm_settings)
    data = Pairs.read(
        _pairs_of(run),
        run.files("image_features", "image_features.parquet"),
        run.files("text_features", "text_features.parquet"),
        vocabulary,
        settings.kind,
        place.scratch,
    )
    trainer = _Trainer(data, None, None, words, vocabulary, settings, lm_settings)
    photos = data.photos.read(0, data.photos.rows).astype(np.float32)
    parts = {dev: np.concatenate(data.rows(dev=dev)) for dev in (False, True)}
    captions = [data.captions[i] for i in parts[False]]
    inputs, targets = rivals.padded_to_the_longest(captions, START, END)

    def rival(*, frozen: bool) -> rivals.Whole:
        own = load_language_model(weights, vocabulary.height, lm_settings)
        copy = build_fusion(vocabulary.height, photos.shape[-1], settings, lm_settings)
        start_from(copy, own)  # the output layer, which the fusion's model does not own
        copy.model.set_weights(trainer.model.get_weights())
        return rivals.Whole.of(copy, own, settings.learning_rate, frozen=frozen)

    by_prefix, inside, frozen = rival(frozen=False), rival(frozen=False), rival(frozen=True)
    few = min(IN_PREFIXES, len(captions))
    epochs = itertools.count(1)
    held_out = rivals.padded_to_the_longest([data.captions[i] for i in parts[True]], START, END)
    begun = trainer.dev_loss(), inside.loss(photos, data.photo_of[parts[True]], *held_out)

    def note() -> str:
        losses = [model.loss(photos, data.photo_of[parts[True]], *held_out) for model in (inside, frozen)]
        return (
            f"dev loss a token with the same weights {begun[0]:.4f}, theirs {begun[1]:.4f}; after "
            f"{next(epochs) - 1} passes {trainer.dev_loss():.3f}, theirs {losses[0]:.3f} and with a frozen "
            f"LSTM {losses[1]:.3f}; the generator did {few} of {len(captions):,} captions a pass"
        )

    prefixes, whole, still = (
        "a generator of prefixes, fit",
        "LSTM inside, padded, fit",
        "the same, LSTM frozen",
    )
    of_captions = data.photo_of[parts[False]]
    return Contest(
        name="fusion",
        title=f"a pass of the fusion over {len(captions):,} captions of {place.name}",
        count=len(captions),
        thing="captions",
        sides={
            OURS: lambda: trainer.epoch(PHOTOS, next(epochs), nobody),
            prefixes: lambda: by_prefix.fit_prefixes(
                photos, of_captions[:few], captions[:few], inputs.shape[1]
            ),
            whole: lambda: inside.fit(photos, of_captions, inputs, targets, settings.batch_size),
            still: lambda: frozen.fit(photos, of_captions, inputs, targets, settings.batch_size),
        },
        targets={prefixes: 20, whole: 4},
        shares={prefixes: few / len(captions)},
        note=note,
    )


def captioning(place: Place) -> Contest:
    """Features → captions, with the pretrained model."""
    from cutline.tasks.bundles.bundle import PRETRAINED, load_bundle
    from cutline.tasks.features.image_features import make_image_features
    from cutline.tasks.images.decode import make_images
    from cutline.tasks.models.fusion import photo_tensor

    bundle = load_bundle(PRETRAINED)
    captioner, kind = bundle.captioner(), bundle.description.fusion.kind
    files = photos_of(place.dataset, place.scratch).head(CAPTIONED_PHOTOS)
    images, _ = make_images(files, place.dataset, ImagesSettings(), nobody)
    features = make_image_features(images, ImageFeaturesSettings(), ImagesSettings().side_px, nobody)
    settings = PredictionsSettings(beam=3, cider_weight=0.0)  # what is compared is the search
    photos = photo_tensor(features, kind)
    steps = captioner.search(photos, settings).length.max(1).mean()  # until the last of a photograph's ends
    photos = photos.astype(np.float32)
    tokens, beam = captioner.vocabulary, settings.beam
    greedy_model = rivals.next_word_model(captioner.fusion, captioner.language_model)
    step_model = rivals.one_step_model(captioner.fusion, captioner.language_model)

    def ours() -> pl.DataFrame:
        return captioner.caption_photos(features, settings, nobody)

    def note() -> str:
        slow = SlowCaptioner(captioner)
        said = (slow.captions(photo, beam, settings.max_tokens)[0][0] for photo in photos[:SLOWLY])
        ids = [[tokens.index(word) for word in words] for words in said]
        same = sum(
            captioner.text(np.array(expected)) == caption
            for expected, caption in zip(ids, ours()["caption"], strict=False)
        )
        return (
            f"{same} of {len(ids)} captions are, word for word, those of a slow beam search in NumPy; "
            f"greedy for {ONE_BY_ONE} photographs"
        )

    greedy, stepped = "greedy, model.predict a word", "beam search, stepped from Python"
    longest = settings.max_tokens
    gflop = _gflop_of_search(captioner, photos, beam * float(steps))
    product, gflop_a_product = rivals.product_float32(2048)
    products = round(gflop / gflop_a_product)

    def multiply() -> None:
        for _ in range(products):
            product()

    ceiling = f"matrix products in float32 of the operations needed, {gflop:.0f} GFLOP"
    return Contest(
        name="captioning",
        title=f"features → captions, beam {beam}, {len(photos)} photographs of {place.name}",
        count=len(photos),
        thing="captions",
        sides={
            OURS: ours,
            greedy: lambda: rivals.greedy_captions(greedy_model, photos[:ONE_BY_ONE], longest, START, END),
            stepped: lambda: rivals.stepped_captions(step_model, photos, beam, longest, START, END),
            ceiling: multiply,
        },
        targets={greedy: 200, stepped: 3},
        shares={greedy: ONE_BY_ONE / len(photos)},
        note=note,
    )


def _gflop_of_search(captioner: Captioner, photos: np.ndarray, states: float) -> float:
    """What captioning `photos`, (N, R, C), multiplies with `states` states each; a state reads its token
    from a table."""
    layers = {name: layer.kernel.shape for name, layer in captioner.fusion.layers.items()}
    of_photo = [layers.pop(name) for name in ("key", "value") if name in layers]
    recurrent = captioner.language_model.lstm.cell.recurrent_kernel.shape
    regions = photos.shape[1]
    attention = 2 * regions * captioner.fusion.settings.hidden_size  # keys, then values
    a_photo = regions * sum(map(math.prod, of_photo))
    a_state = math.prod(recurrent) + sum(map(math.prod, layers.values())) + attention
    return 2 * len(photos) * (a_photo + states * a_state) / 1e9


def _tokens_of(run: Finished, split: str) -> pl.DataFrame:
    """The `tokens` of the captions of a split."""
    captions = run.table("ingest", "captions").filter(pl.col("split") == split)
    return run.table("captions", "tokens").join(captions, on="caption_id", how="semi")


def _pairs_of(run: Finished) -> pl.DataFrame:
    """Some training captions and the dev captions that have a photograph, as the fusion takes them."""
    captions = run.table("ingest", "captions").drop_nulls("photo_id").sort("photo_id", "caption_id")
    tokens = run.table("captions", "tokens").select("caption_id", "tokens")
    pairs = captions.join(tokens, on="caption_id", maintain_order="left")
    pairs = pairs.select("caption_id", "photo_id", "split", "tokens")
    return pl.concat([pairs.filter(split="train").head(PAIRED_CAPTIONS), pairs.filter(split="dev")])


def _texts(place: Place) -> list[str]:
    """Captions, told again from the first one where there are too few."""
    lines = (place.dataset / "Flickr8k.token.txt").read_text(encoding="utf-8").splitlines()
    texts = [line.partition("\t")[2] for line in lines if "\t" in line]
    return (texts * -(-TOKENS // len(texts)))[:TOKENS]
