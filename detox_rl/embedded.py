"""The default that needs no hub: a base model, dialogues, a toxicity classifier and a summary adapter.

The dialogues, the classifier and the adapter are files of this package. The base model is too large for that:
its weights come with the PyPI wheel `traceforge-title-model` (MIT, extra `demo`), a FLAN-T5-small that its author
fine-tuned to write short titles and quantised to int8 ONNX graphs. It is not google/flan-t5-small, and no
summariser before it is fine-tuned. `base_model` converts it once into a folder that transformers loads like any other;
`python -m detox_rl.embedded` prints that folder.
"""

import argparse
import hashlib
import json
import os
import shutil
from importlib import resources
from pathlib import Path

import numpy as np
from filelock import FileLock
from safetensors.numpy import save

EMBEDDED = "embedded"
SPLITS = ("train", "validation", "test")

# Change the number whenever the conversion writes something else, so that no old folder in a cache is taken for new.
_FOLDER = "flan-t5-small-titles-v1"

_WHEEL_SHA256 = {
    "encoder.onnx": "b82bef1400cec815c3e5addd04dc451ec31491ac6598b166bbc6594656823787",
    "decoder.onnx": "76b40328b8a6bd8b8fc029d80006284c6d644d6e0938c18339bc05fb31a927bc",
    "tokenizer.json": "3550c5f922922567115f702e0543b57276366fc321cf1f088859c71491656cf6",
}

_GENERATION_CONFIG = {"decoder_start_token_id": 0, "eos_token_id": 1, "pad_token_id": 0}

_CONFIG = {
    "architectures": ["T5ForConditionalGeneration"],
    "model_type": "t5",
    **_GENERATION_CONFIG,
    "d_ff": 1024,
    "d_kv": 64,
    "d_model": 512,
    "dropout_rate": 0.1,
    "feed_forward_proj": "gated-gelu",
    "is_encoder_decoder": True,
    "layer_norm_epsilon": 1e-6,
    "num_decoder_layers": 8,
    "num_heads": 6,
    "num_layers": 8,
    "relative_attention_max_distance": 128,
    "relative_attention_num_buckets": 32,
    # As in T5 v1.1 and FLAN: lm_head has weights of its own, and what enters it is not scaled by d_model ** -0.5.
    "tie_word_embeddings": False,
    "vocab_size": 32128,
}

_TOKENIZER_CONFIG = {
    # The generic class runs tokenizer.json as it is; transformers 5's T5Tokenizer would replace its pre-tokenizer.
    "tokenizer_class": "PreTrainedTokenizerFast",
    "eos_token": "</s>",
    "model_max_length": 512,
    "pad_token": "<pad>",
    "unk_token": "<unk>",
}


def resolve(name: str) -> str:
    """Turns "embedded" into the folder of `base_model`; a hub id or a local folder passes through unchanged."""
    return str(base_model()) if name == EMBEDDED else name


def base_model() -> Path:
    """Returns the folder of the embedded FLAN-T5-small, converting it on the first call.

    The folder lies in the cache (environment variable `DETOX_RL_CACHE`, else `~/.cache/detox_rl`) and holds what
    `AutoModelForSeq2SeqLM.from_pretrained` and `AutoTokenizer.from_pretrained` read. Several processes may call this
    at once: one converts, the others wait for it.

    Raises:
        ModuleNotFoundError: The wheel, or onnx to read it, is not installed.
        ValueError: A file of the wheel is not the one this conversion was written for.
    """
    cache = Path(os.environ.get("DETOX_RL_CACHE") or "~/.cache/detox_rl").expanduser()
    folder = cache / _FOLDER
    if folder.is_dir():
        return folder
    cache.mkdir(parents=True, exist_ok=True)
    with FileLock(cache / f"{_FOLDER}.lock"):
        if not folder.is_dir():
            wheel = _wheel_folder()
            partial = cache / f"{_FOLDER}.partial"
            shutil.rmtree(partial, ignore_errors=True)  # left by a process that was killed
            partial.mkdir()
            _convert(wheel, partial)
            partial.rename(folder)  # atomic, so a folder of this name is always complete
    return folder


def dialogues(split: str) -> Path:
    """Returns the embedded dialogues of one split, a jsonl file.

    Args:
        split: "train", "validation" or "test".
    """
    if split not in SPLITS:
        raise ValueError(f"the embedded dialogues have the splits {', '.join(SPLITS)}, not {split!r}")
    return _asset("dialogues", f"{split}.jsonl")


def toxicity_checkpoint() -> Path:
    """Returns the embedded toxicity classifier, a checkpoint file for `Detoxify(checkpoint=...)`."""
    return _asset("toxicity", "classifier.ckpt")


def hashed_ngrams() -> Path:
    """Returns the folder of the embedded linear judge of toxicity."""
    return _asset("hashed_ngrams")


def strong_words() -> Path:
    """Returns the list of strong words, a text file."""
    return _asset("strong_words.txt")


def group_terms() -> Path:
    """Returns the list of terms for groups of people, a text file."""
    return _asset("group_terms.txt")


def summary_adapter() -> Path:
    """Returns the folder of the embedded LoRA adapter that makes a summariser of `base_model`."""
    return _asset("summary_adapter")


def conflict_words(name: str) -> Path:
    """Returns one of the word lists by which a report of a conflict is known: "acts", "people" or "rude"."""
    return _asset("conflict", f"{name}.txt")


def conflict_labels() -> Path:
    """Returns the summaries that two readers judged, by which the measure of reports was checked, a jsonl file."""
    return _asset("conflict", "labels.jsonl")


def _asset(*parts: str) -> Path:
    path = Path(str(resources.files(__package__) / "assets")).joinpath(*parts)
    if not path.exists():
        raise FileNotFoundError(f"{path} should be part of the detox_rl package but is absent: install it again")
    return path


def _wheel_folder() -> Path:
    """Finds the wheel's data and checks that every file is the expected one."""
    try:
        import onnx  # noqa: F401  (asked for here, so that nothing is converted by half)
        import traceforge_title_model
    except ModuleNotFoundError as error:
        raise ModuleNotFoundError(
            f'the embedded model needs the package {error.name}: pip install "detox_rl[demo]"', name=error.name
        ) from error
    wheel = traceforge_title_model.span_dir()
    for name, expected in _WHEEL_SHA256.items():
        found = hashlib.sha256((wheel / name).read_bytes()).hexdigest()
        if found != expected:
            raise ValueError(
                f"{wheel / name} is damaged or of another version (its sha256 is {found}, expected {expected}): "
                "pip install --force-reinstall traceforge-title-model==0.2.0"
            )
    return wheel


def _convert(wheel: Path, folder: Path) -> None:
    weights = _graph_weights(wheel / "encoder.onnx") | _graph_weights(wheel / "decoder.onnx")
    # Not `save_file`: it makes a file that only its owner may read, and a cache may be shared.
    (folder / "model.safetensors").write_bytes(save(weights, metadata={"format": "pt"}))
    tokenizer = json.loads((wheel / "tokenizer.json").read_text(encoding="utf-8"))
    # The author cut his inputs to 48 tokens and padded every batch; both are the caller's business.
    tokenizer |= {"truncation": None, "padding": None}
    _write_json(folder / "tokenizer.json", tokenizer)
    _write_json(folder / "tokenizer_config.json", _TOKENIZER_CONFIG)
    _write_json(folder / "config.json", _CONFIG)
    _write_json(folder / "generation_config.json", _GENERATION_CONFIG)


def _graph_weights(path: Path) -> dict[str, np.ndarray]:
    """Reads the weights of one quantised graph as float32, under the names of transformers' T5.

    Layer norms are stored as float under their names. Embeddings are stored as int8 under their names, with a scale
    and a zero point. Linear layers are int8 too, transposed, and anonymous (`onnx::MatMul_1022_quantized`): only the
    MatMulInteger node that uses one tells, by its own name (`/enc/block.0/layer.0/SelfAttention/q/MatMul_quant`),
    which module it belongs to.
    """
    import onnx

    graph = onnx.load(path).graph
    arrays = {initializer.name: onnx.numpy_helper.to_array(initializer) for initializer in graph.initializer}
    weights = {}
    for node in graph.node:
        if node.op_type == "MatMulInteger":
            module = node.name.removeprefix("/").removesuffix("/MatMul_quant").replace("/", ".")
            matrix = _dequantized(arrays, node.input[1].removesuffix("_quantized"))
            weights[_t5_name(f"{module}.weight")] = np.ascontiguousarray(matrix.T)
    for name, array in arrays.items():
        if name.endswith(".weight"):
            weights[_t5_name(name)] = array
        elif name.endswith(".weight_quantized"):
            stem = name.removesuffix("_quantized")
            weights[_t5_name(stem)] = _dequantized(arrays, stem)
    return weights


def _dequantized(arrays: dict[str, np.ndarray], stem: str) -> np.ndarray:
    """(quantised - zero point) * scale, with the subtraction in float, where 8 bits cannot overflow."""
    quantized, zero_point = arrays[f"{stem}_quantized"], arrays[f"{stem}_zero_point"]
    return (quantized.astype(np.float32) - zero_point.astype(np.float32)) * arrays[f"{stem}_scale"]


def _t5_name(name: str) -> str:
    """`enc.block.0...` -> `encoder.block.0...`, `m.decoder...` -> `decoder...`; the embedding is shared."""
    if name == "enc.embed_tokens.weight":
        return "shared.weight"
    return name.replace("enc.", "encoder.", 1) if name.startswith("enc.") else name.removeprefix("m.")


def _write_json(path: Path, content: dict) -> None:
    path.write_text(json.dumps(content, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")


def main(args: list[str] | None = None) -> None:
    """Prints the folder of the embedded base model, for tools that want a path; the first call converts it."""
    argparse.ArgumentParser(prog="python -m detox_rl.embedded", description=main.__doc__).parse_args(args)
    print(base_model())


if __name__ == "__main__":
    main()
