"""The cost of Whisper by its dimensions: work (FLOP, a multiply-add is two) and memory (bytes).

Pure arithmetic; nothing is loaded. Work is of one row: the encoder at a context of some seconds, the decoder over some
tokens. T is encoder positions (50 a second), L tokens, d the width, f the width of the feed-forward part, V the
vocabulary. Only matrix products are counted, a weight at two FLOP a position (Kaplan et al. 2020, section 2.1).
"""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

from asr_lora.config.schema import WHOLE

POSITIONS_PER_SECOND = 50  # of the encoder: 100 mel frames a second, halved by the second convolution
SPACING = 16  # positions of silence that each cached one behind a short context stands for (silence.py); 0.32 s
SOURCE_POSITIONS, TARGET_POSITIONS = 1500, 448  # position embeddings of all published checkpoints
OPTIMIZER_BYTES = 16  # a trainable parameter in fp32, its gradient, and Adam's two moments
MOMENT_BYTES_SAVED = 6  # of these where Adam's moments are in 8 bits
PROCESS_BYTES = 0.7e9  # the libraries in a CPU process (measured); about the same for a CUDA context (estimated)
GPU_SLACK = 1.1  # memory held by PyTorch's allocator over memory used (estimated)
CPU_SLACK = 3.0  # the same of malloc, which returns little: whisper-base held 5.0 GB with 4 rows at 30 s, not 2.4


# Kept for backward by kind of tuning, in bytes a width d (f = 4d): of an encoder layer a position, of a decoder layer a
# token, and of a decoder layer a position that it attends to. In fp32 as autograd keeps them on a CPU, with dropout; in
# half precision as counted under CUDA's casts (tests/model/test_kept_bytes.py), where inputs of norms stay fp32 and
# masks of dropout are a byte each.
_QV = ((56, 76, 16), (30, 41, 7))
ACTIVATION_WIDTHS = {
    "qv": _QV, "all_linear": ((116, 144, 24), (51, 65, 10)), "encoder": ((56, 52, 8), (30, 32, 4)),
    "decoder": ((0, 76, 12), (0, 41, 6)), "rslora": _QV, "dora": ((84, 100, 48), (38, 53, 11)), "pissa": _QV,
    "lora_plus": _QV, "adalora": ((60, 80, 20), (30, 41, 7)), "qlora": _QV, "ia3": ((64, 76, 16), (44, 52, 8)),
    "bitfit": ((40, 52, 8), (24, 32, 4)), "full": ((68, 88, 8), (42, 54, 8)),
}  # fmt: skip
KEPT_SHARE = {"cpu": 0.65, "gpu": 0.89}  # of fp32's: a CPU's half precision (bf16, measured), a GPU's fp32 (its masks)


@dataclass(frozen=True)
class ModelDimensions:
    """The sizes of a Whisper, as in a checkpoint's config.json."""

    d_model: int
    ffn: int
    encoder_layers: int
    decoder_layers: int
    mels: int
    vocabulary: int


# As published by OpenAI (github.com/openai/whisper, model cards of huggingface.co/openai).
PUBLISHED = {
    "openai/whisper-tiny": ModelDimensions(384, 1536, 4, 4, 80, 51865),
    "openai/whisper-base": ModelDimensions(512, 2048, 6, 6, 80, 51865),
    "openai/whisper-small": ModelDimensions(768, 3072, 12, 12, 80, 51865),
    "openai/whisper-medium": ModelDimensions(1024, 4096, 24, 24, 80, 51865),
    "openai/whisper-large-v2": ModelDimensions(1280, 5120, 32, 32, 80, 51865),
    "openai/whisper-large-v3": ModelDimensions(1280, 5120, 32, 32, 128, 51866),
    "openai/whisper-large-v3-turbo": ModelDimensions(1280, 5120, 32, 4, 128, 51866),
}


def dimensions(config: Mapping[str, Any]) -> ModelDimensions:
    """Reads the dimensions from a config.json. Raises KeyError when it is no Whisper's."""
    return ModelDimensions(
        d_model=config["d_model"],
        ffn=config["encoder_ffn_dim"],
        encoder_layers=config["encoder_layers"],
        decoder_layers=config["decoder_layers"],
        mels=config["num_mel_bins"],
        vocabulary=config["vocab_size"],
    )


# ---- work ----


def silence(seconds: float) -> float:
    """Returns the positions behind a context of `seconds` that are attended to but not computed."""
    return (SOURCE_POSITIONS - seconds * POSITIONS_PER_SECOND) / SPACING


def attention_flops(shape: ModelDimensions, seconds: float, tokens: float) -> float:
    """Counts FLOP of attention: 4*T*(T+S)*d an encoder layer, 4*L^2*d + 4*L*(T+S)*d a decoder layer."""
    positions, d, behind = seconds * POSITIONS_PER_SECOND, shape.d_model, silence(seconds)
    encoder = 4 * positions * (positions + behind) * d
    decoder = 4 * tokens**2 * d + 4 * tokens * (positions + behind) * d
    return shape.encoder_layers * encoder + shape.decoder_layers * decoder


def forward_flops(shape: ModelDimensions, seconds: float, tokens: float) -> float:
    """Counts FLOP of a forward pass.

    An encoder layer is 24*T*d^2 + 4*T^2*d: four projections (8*T*d^2), the feed-forward part (4*T*d*f, with Whisper's
    f = 4d another 16*T*d^2), attention. A decoder layer is 28*L*d^2 + 4*L^2*d + 4*L*T*d, and 4*T*d^2 for the keys and
    values of the encoder's output. S positions of silence add keys and values, 4*S*d^2 in either. The convolutions are
    2*2T*3*mels*d + 2*T*3*d^2, the logits 2*L*d*V.
    """
    positions, d, behind = seconds * POSITIONS_PER_SECOND, shape.d_model, silence(seconds)
    feed_forward = 4 * d * shape.ffn
    encoder = positions * (8 * d**2 + feed_forward) + 4 * behind * d**2
    decoder = tokens * (12 * d**2 + feed_forward) + 4 * (positions + behind) * d**2
    convolutions = 12 * positions * shape.mels * d + 6 * positions * d**2
    logits = 2 * tokens * d * shape.vocabulary
    layers = shape.encoder_layers * encoder + shape.decoder_layers * decoder
    return layers + attention_flops(shape, seconds, tokens) + convolutions + logits


def training_flops(
    shape: ModelDimensions, seconds: float, tokens: float, trainable: int, checkpointing: bool, kind: str = "qv"
) -> float:
    """Counts FLOP of forward and backward, by `kind` of tuning; for an adapter about twice the forward.

    Backward through a frozen weight is one product, not two; through attention it is 2.5 times its forward (Dao 2023,
    FlashAttention-2, section 4.1: both operands, and the scores again). An adapter is 2 FLOP a parameter and position
    in forward and 4 in backward. Checkpointing is one more forward (Chen et al. 2016). Where every weight trains each
    has its second product; where only the decoder does, backward ends there.
    """
    adapter = 0 if kind == "full" else 2 * trainable * seconds * POSITIONS_PER_SECOND
    forward = forward_flops(shape, seconds, tokens)
    backward = forward + 1.5 * attention_flops(shape, seconds, tokens) + 2 * adapter
    if kind == "full":
        backward += forward - attention_flops(shape, seconds, tokens)
    elif kind == "decoder":
        encoder = replace(shape, decoder_layers=0)
        backward -= forward_flops(encoder, seconds, 0) + 1.5 * attention_flops(encoder, seconds, 0)
    return forward * (2 if checkpointing else 1) + adapter + backward


# ---- memory ----


def parameters(shape: ModelDimensions) -> int:
    """Counts all parameters of the base, including biases, norms and position embeddings."""
    d, f = shape.d_model, shape.ffn
    norms_and_biases = shape.encoder_layers * (8 * d + f) + shape.decoder_layers * (13 * d + f) + 4 * d
    front = 3 * shape.mels * d + 3 * d**2 + 2 * d
    embeddings = (SOURCE_POSITIONS + TARGET_POSITIONS + shape.vocabulary) * d
    return _linear_parameters(shape) + norms_and_biases + front + embeddings


def _linear_parameters(shape: ModelDimensions) -> int:
    """Counts the parameters that are quantized: the layers' projections, not the embedding, which is tied."""
    d, f = shape.d_model, shape.ffn
    return shape.encoder_layers * (4 * d**2 + 2 * d * f) + shape.decoder_layers * (8 * d**2 + 2 * d * f)


def weight_bytes(shape: ModelDimensions, precision: str, double_quant: bool = False) -> float:
    """Counts the bytes of a base in training, in fp32, fp16, bf16, int8 or nf4.

    A quantized one keeps the rest in fp32 (peft's prepare_model_for_kbit_training). NF4 is half a byte a weight and an
    fp32 scale per 64 of them, or with double quantization a byte, and an fp32 scale per 256 of those (Dettmers et al.
    2023).
    """
    if precision not in ("int8", "nf4"):
        return parameters(shape) * (4 if precision == "fp32" else 2)
    linear = _linear_parameters(shape)
    scales = (1 + 4 / 256 if double_quant else 4) / 64
    return linear * (1 if precision == "int8" else 0.5 + scales) + (parameters(shape) - linear) * 4


def kept_bytes(
    shape: ModelDimensions, seconds: float, tokens: float, *, half: bool, on_gpu: bool, checkpointing: bool = False,
    kind: str = "qv",
) -> float:  # fmt: skip
    """Counts bytes kept for backward, for one row, by ACTIVATION_WIDTHS of the `kind` of tuning.

    `half`: arithmetic in half precision. Silence behind a context adds only keys and values, in encoder and decoder.
    """
    d, positions, behind = shape.d_model, seconds * POSITIONS_PER_SECOND, silence(seconds)
    in_fp32, in_half = ACTIVATION_WIDTHS[kind]
    share = KEPT_SHARE["gpu" if on_gpu else "cpu"] if half != on_gpu else 1
    of_encoder, of_token, of_attended = in_half if half and on_gpu else (share * each for each in in_fp32)
    encoder = (positions * of_encoder + behind * of_attended) * d if of_encoder else 0
    decoder = (tokens * of_token + (positions + behind) * of_attended) * d
    if checkpointing:  # every layer's input, and one layer whole
        inputs = positions * shape.encoder_layers + tokens * shape.decoder_layers
        return 4 * inputs * d + max(encoder, decoder)
    return shape.encoder_layers * encoder + shape.decoder_layers * decoder


@dataclass(frozen=True)
class TrainingMode:
    """The settings that the memory of a training step depends on, besides its clips.

    `precision` of the base; `autocast`: arithmetic in half precision; `trainable` parameters; `kind` of tuning;
    `eight_bit`: the optimizer's moments are in 8 bits.
    """

    precision: str
    autocast: bool
    checkpointing: bool
    trainable: int
    on_gpu: bool
    kind: str = "qv"
    eight_bit: bool = False


def training_bytes(shape: ModelDimensions, mode: TrainingMode, rows: int, seconds: float, tokens: float) -> float:
    """Returns peak bytes of a training step with `rows` a forward: weights, optimizer, activations.

    Activations are `kept_bytes`, within a tenth of the count in every precision; with checkpointing they are estimated.
    """
    precision, kind = mode.precision, mode.kind
    half = mode.autocast or precision in ("fp16", "bf16")
    kept = kept_bytes(
        shape, seconds, tokens, half=half, on_gpu=mode.on_gpu, checkpointing=mode.checkpointing, kind=kind
    )
    # Of the layer that backward is in; and logits, their softmax and their gradient.
    working = 3 * seconds * POSITIONS_PER_SECOND * shape.ffn * (2 if half else 4)
    activations = rows * (kept + working + 3 * 4 * tokens * shape.vocabulary)
    copies = 0.0  # in half precision, of weights that autocast multiplies: an fp32 base, or a quantized one's embedding
    if mode.autocast and precision not in ("fp16", "bf16"):
        copies = 2 * (parameters(shape) if precision == "fp32" else shape.vocabulary * shape.d_model)
    slack = GPU_SLACK if mode.on_gpu else CPU_SLACK
    # A whole model's own weights are counted already.
    each = OPTIMIZER_BYTES - 4 * (kind in WHOLE) - MOMENT_BYTES_SAVED * mode.eight_bit
    fixed = weight_bytes(shape, precision, kind == "qlora") + copies + each * mode.trainable
    return PROCESS_BYTES + fixed + slack * activations


def rows_that_fit(available: float, shape: ModelDimensions, mode: TrainingMode, seconds: float, tokens: float) -> int:
    """Returns the most rows in one forward of training within `available` bytes; 0 when not even one fits."""
    none, one = (training_bytes(shape, mode, rows, seconds, tokens) for rows in (0, 1))
    return max(0, int((available - none) / (one - none)))


def decoding_bytes(
    shape: ModelDimensions, weights: float, rows: int, seconds: float, tokens: float, half: bool
) -> float:
    """Returns peak bytes of decoding `rows` (clips times beams): `weights`, keys, values, encoder layer."""
    d, positions, element = shape.d_model, seconds * POSITIONS_PER_SECOND, 2 if half else 4
    cache = 2 * (positions + tokens) * d * shape.decoder_layers
    layer = positions * (6 * d + 2 * shape.ffn)
    return PROCESS_BYTES + weights + rows * ((cache + layer) * element + shape.vocabulary * 3 * 4)
