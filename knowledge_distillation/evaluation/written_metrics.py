"""Scores of written texts against the right ones: BLEU and ROUGE, by the libraries that papers report."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from ..errors import ConfigError, nearest

Score = Callable[[Sequence[str], Sequence[str]], dict[str, float]]


def bleu(written: Sequence[str], references: Sequence[str]) -> dict[str, float]:
    """`bleu`, 0 to 100, of the whole by sacrebleu with its own tokens (13a, case kept).

    Source: Papineni et al., BLEU, 2002; Post, A Call for Clarity in Reporting BLEU Scores, 2018.
    """
    import sacrebleu

    return {"bleu": float(sacrebleu.corpus_bleu(list(written), [list(references)]).score)}


def rouge(written: Sequence[str], references: Sequence[str]) -> dict[str, float]:
    """`rouge1`, `rouge2`, `rougeL`, 0 to 1: the mean F of the texts by rouge_score; words are a-z and 0-9, stemmed.

    Source: Lin, ROUGE: A Package for Automatic Evaluation of Summaries, 2004.
    """
    from rouge_score.rouge_scorer import RougeScorer

    names = ("rouge1", "rouge2", "rougeL")
    scorer = RougeScorer(names, use_stemmer=True)
    scores = [scorer.score(right, found) for found, right in zip(written, references, strict=True)]
    return {name: sum(score[name].fmeasure for score in scores) / len(scores) for name in names}


_SCORES: dict[str, tuple[Score, str]] = {"bleu": (bleu, "sacrebleu"), "rouge": (rouge, "rouge_score")}


def score_of(name: str) -> Score:
    """The function that scores texts: (written, references) -> metrics.

    Raises:
        ConfigError: the name is unknown, or its library is not installed.
    """
    from importlib.util import find_spec

    if name not in _SCORES:
        raise ConfigError(f"metric {name!r} of written texts is unknown.{nearest(name, _SCORES)} Known: bleu, rouge")
    score, library = _SCORES[name]
    if find_spec(library) is None:
        raise ConfigError(f"metric {name} needs {library}: pip install 'knowledge_distillation[seq2seq]'")
    return score
