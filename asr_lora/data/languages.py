"""The language tokens of a run with several languages: a clip has its own where that is not the run's.

The line of such a clip has `language_token`, Whisper's token; no other line has the key. Where the languages come from,
first that wins: the `token` of an item of data.sources, the column of languages of its table, the item's `language`.
"""

from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace
from typing import Any

from asr_lora.config.schema import DataConfig, ModelConfig, SourceConfig
from asr_lora.corpus import Corpus
from asr_lora.corpus.records import Utterance
from asr_lora.model.pretrained import language_token, language_tokens
from asr_lora.runtime.console import log
from asr_lora.runtime.errors import ConfigError, ExternalError

KEY = "language_token"  # of a line of a manifest or of hypotheses.jsonl


def clip_language(line: Mapping[str, Any], usual: str) -> str:
    """Returns Whisper's token of a clip; `usual` is the run's."""
    return str(line.get(KEY) or usual)


def clip_languages(lines: Iterable[Mapping[str, Any]], usual: str) -> list[str]:
    """Returns the token of each clip."""
    return [clip_language(line, usual) for line in lines]


def count_languages(lines: Sequence[Mapping[str, Any]], usual: str) -> dict[str, int]:
    """Returns the clips by token, the run's first; empty where all are of the run's."""
    counted = Counter(clip_languages(lines, usual))
    if set(counted) <= {usual}:
        return {}
    return {token: counted[token] for token in sorted(counted, key=lambda token: (token != usual, token))}


def run_tokens(data: DataConfig, model: ModelConfig) -> list[str]:
    """Returns the tokens that the settings name, the run's first. Raises ConfigError, with a way out, for others."""
    usual = language_token(model, data.language)
    return list(dict.fromkeys([usual, *(_source_token(each, data, model) for each in data.sources)]))


def _source_token(source: SourceConfig, data: DataConfig, model: ModelConfig) -> str:
    if source.token is not None:
        tokens = language_tokens(model.checkpoint)
        if source.token not in tokens:
            raise ConfigError(
                f"data.sources.token: {source.token} is none of this checkpoint's {', '.join(sorted(tokens))}"
            )
        return source.token
    try:
        return _token(source.language or data.language, data.language, model)
    except ConfigError as error:
        raise ConfigError(
            f"data.sources.language: the checkpoint has no token for {source.language}; name the language to train "
            f"{source.path} in, token=nl in that item"
        ) from error


def _token(language: str, locale: str, model: ModelConfig) -> str:
    """Returns the token of a row's language; `locale` is the run's, whose token may be that of a relative."""
    if language.partition("-")[0] == locale.partition("-")[0]:
        return language_token(model, locale)
    return language_token(replace(model, language=None), language)


def row_tokens(locale: str, model: ModelConfig) -> Callable[[str], str]:
    """Returns a function from a row's language to its token, empty where it is the run's.

    It raises ValueError, with the reason alone, for a language without a token. `locale` is the run's.
    """
    usual, known = language_token(model, locale), {"": ""}

    def token(language: str) -> str:
        if language not in known:
            try:
                found = _token(language, locale, model)
            except ConfigError as error:
                raise ValueError(f"Whisper has no token for its language ({language})") from error
            known[language] = "" if found == usual else found
        return known[language]

    return token


def with_tokens(corpus: Corpus, locale: str, model: ModelConfig) -> Corpus:
    """Returns the corpus with tokens as the `language` of its utterances, empty where it is that of `locale`.

    Utterances in languages without a token are left out, and logged and counted as malformed rows are. Raises
    ConfigError where a split has no others.
    """
    stated = {each.language for own in corpus.tables.values() for each in own} - {""}
    if not stated:
        return corpus
    token, tables, malformed = row_tokens(locale, model), dict[str, list[Utterance]](), dict(corpus.malformed)
    for table, own in corpus.tables.items():
        kept, out = [], []
        for each in own:
            try:
                kept.append(replace(each, language=token(each.language)))
            except ValueError as reason:
                out.append(f"{each.path}: {reason}")
        if out and not kept:
            raise ConfigError(
                f"data.source: no row of {table} is in a language of this checkpoint ({out[0]}, ...); name the "
                "language to train them in, 'data.sources=[{path: ..., token: nl}]'"
            )
        if out:
            log(f"{corpus.source}: {len(out)} of {len(own)} rows of {table} left out ({out[0]}, ...)")
            malformed[table] = [*malformed.get(table, []), *out]
        tables[table] = kept
    return replace(corpus, tables=tables, malformed=malformed)


def check_clips(lines: Sequence[Mapping[str, Any]], model: ModelConfig, of: str) -> None:
    """Raises ExternalError where lines of a manifest, which may come from anywhere, have tokens of no language."""
    tokens = language_tokens(model.checkpoint) if any(KEY in line for line in lines) else set()
    if wrong := [line for line in lines if KEY in line and line[KEY] not in tokens]:
        raise ExternalError(
            f"{of}: the {KEY} of {wrong[0]['id']}, {wrong[0][KEY][:40]!r}, is none of this checkpoint's; prepare the "
            "run anew, or take the base model that it was prepared for"
        )
