"""Public data sets of the Hub that need no settings: the columns, splits and languages of each, from its card.

Source of an entry: https://huggingface.co/datasets/<its name>. Imports nothing heavy.
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from difflib import get_close_matches

from asr_lora.runtime.errors import ConfigError, listed

HUB = "hf:"  # prefix of a data set's name
PAGES = "https://huggingface.co/datasets"
LOCALE = re.compile(r"[a-z]{2,3}(-\w+)?")
SAME = {"nb": "no", "fil": "tl", "zh-HK": "yue"}  # languages under two codes

FLEURS = """
    af_za am_et ar_eg as_in ast_es az_az be_by bg_bg bn_in bs_ba ca_es ceb_ph ckb_iq cmn_hans_cn cs_cz cy_gb da_dk de_de
    el_gr en_us es_419 et_ee fa_ir ff_sn fi_fi fil_ph fr_fr ga_ie gl_es gu_in ha_ng he_il hi_in hr_hr hu_hu hy_am id_id
    ig_ng is_is it_it ja_jp jv_id ka_ge kam_ke kea_cv kk_kz km_kh kn_in ko_kr ky_kg lb_lu lg_ug ln_cd lo_la lt_lt luo_ke
    lv_lv mi_nz mk_mk ml_in mn_mn mr_in ms_my mt_mt my_mm nb_no ne_np nl_nl nso_za ny_mw oc_fr om_et or_in pa_in pl_pl
    ps_af pt_br ro_ro ru_ru sd_in sk_sk sl_si sn_zw so_so sr_rs sv_se sw_ke ta_in te_in tg_tj th_th tr_tr uk_ua umb_ao
    ur_pk uz_uz vi_vn wo_sn xh_za yo_ng yue_hant_hk zu_za
""".split()
# Common Voice's locales of FLEURS' codes, where they are not the first part.
FLEURS_LOCALES = {
    "cmn_hans_cn": "zh-CN", "fil_ph": "tl", "ga_ie": "ga-IE", "hy_am": "hy-AM", "nb_no": "nb-NO", "ne_np": "ne-NP",
    "pa_in": "pa-IN", "sv_se": "sv-SE",
}  # fmt: skip
MLS = {
    "dutch": "nl", "french": "fr", "german": "de", "italian": "it", "polish": "pl", "portuguese": "pt", "spanish": "es",
}  # fmt: skip
VOXPOPULI = "cs de en es et fi fr hr hu it lt nl pl ro sk sl".split()


@dataclass(frozen=True)
class KnownSet:
    """What a data set's card tells: `columns` by the field that they hold, `splits` that are not called as others are.

    `configs` maps its configurations to locales, in the order of preference (None: they are Common Voice's locales).
    Where the text's column is empty, `text_if_empty` has it. `note` is about the text.
    """

    columns: Mapping[str, str]
    note: str
    configs: Mapping[str, str] | None
    splits: Mapping[str, str] = field(default_factory=dict)
    text_if_empty: str = ""


PUNCTUATED, PLAIN = "cased, with punctuation", "in one case, without punctuation"
KNOWN = {
    "google/fleurs": KnownSet(
        {"text": "raw_transcription"},
        f"{PUNCTUATED}; the speakers are not known",
        {code: FLEURS_LOCALES.get(code, code.partition("_")[0]) for code in FLEURS},
    ),
    "facebook/multilingual_librispeech": KnownSet(
        {"text": "transcript", "speaker": "speaker_id"},
        PLAIN,
        MLS,
        {"9_hours": "none", "1_hours": "none"},  # parts of train
    ),
    "facebook/voxpopuli": KnownSet(
        {"text": "raw_text", "speaker": "speaker_id"},
        f"{PUNCTUATED}, but normalized_text where raw_text is empty",
        {**{code: code for code in VOXPOPULI}, "en_accented": "en"},
        text_if_empty="normalized_text",
    ),
    "openslr/librispeech_asr": KnownSet(
        {"text": "text", "speaker": "speaker_id"}, PLAIN, dict.fromkeys(("clean", "other", "all"), "en")
    ),
    "edinburghcstr/ami": KnownSet(
        {"text": "text", "speaker": "speaker_id"}, PLAIN, dict.fromkeys(("ihm", "sdm"), "en")
    ),
    "fixie-ai/common_voice_17_0": KnownSet({"text": "sentence", "speaker": "client_id"}, PUNCTUATED, None),
}  # fmt: skip


def known_set(source: str) -> tuple[KnownSet | None, str, str]:
    """Returns what is known of a source (None: nothing), and the name and the configuration in it."""
    name, _, config = source.removeprefix(HUB).partition(":")
    return KNOWN.get(name) if source.startswith(HUB) else None, name, config


def source_language(source: str, language: str) -> str:
    """Returns the locale of a source: of a known data set that of its configuration, else `language`, the run's.

    It is `language` too where both are of one language.
    """
    known, _, config = known_set(source)
    own = _locale(known, config) if known else None
    return language if own is None or _primary(own) == _primary(language) else own


def configuration(known: KnownSet, source: str, language: str) -> str:
    """Returns the configuration of a known data set: that which the source names, else that of the language.

    Raises ConfigError, with the nearest ones, where there is none, or where it is of another language.
    """
    _, name, config = known_set(source)
    every = known.configs
    if not config:
        locales = every or {language: language}
        own = [code for code, locale in locales.items() if _primary(locale) == _primary(language)]
        if not own:
            has = listed(sorted(set(locales.values())))
            raise ConfigError(
                f"data.source: {source} has no speech in {language} (data.language), only in {has}; see {PAGES}/{name}"
            )
        return own[0]
    if every is not None and config not in every:
        near = [code for code, locale in every.items() if _primary(locale) == re.split("[_-]", config)[0]]
        near = near or get_close_matches(config, every, n=3, cutoff=0.4) or list(every)[:3]
        raise ConfigError(f"data.source: {source}: no {config} in it; nearest: {', '.join(near)}; see {PAGES}/{name}")
    if (own_language := source_language(source, language)) != language:
        raise ConfigError(
            f"data.source: {source} is in {own_language}, not in {language}; set data.language={own_language} (in "
            f"data.sources and eval.sets: language={own_language})"
        )
    return config


def check_known(source: str, language: str) -> None:
    """Raises ConfigError for a known data set without such a configuration or language; asks no Hub."""
    known, *_ = known_set(source)
    if known:
        configuration(known, source, language)


def _locale(known: KnownSet, config: str) -> str | None:
    if known.configs is None:
        return config if LOCALE.fullmatch(config) else None
    return known.configs.get(config)


def _primary(locale: str) -> str:
    code = locale if locale in SAME else locale.partition("-")[0]
    return SAME.get(code, code)
