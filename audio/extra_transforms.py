"""Augmentations that the user names: transforms of audiomentations, or classes of the user's own.

An entry of `audio_augmentation.extra_transforms` is the import path of a class, then keyword arguments:

    audiomentations.ClippingDistortion min_percentile_threshold=0
    my_module.MyTransform strength=0.5 kind=soft

Arguments are Python literals where they can be read as such, else strings; a value with blanks is quoted. The class is
instantiated once per worker and called as `instance(samples=waveform, sample_rate=16000)`: float32 [samples] → float32
[samples], of another length if need be. Where its constructor has the argument `p` (audiomentations' probability, 0.5
by default), it gets p=1.0 unless the entry gives another: whether a transform is applied is decided by the round robin
or by `extra_transforms_prob`.

Before each call `random` and `numpy.random` are seeded from the sample's own generator, so a transform that draws from
them gives the same bytes in every process.
"""

from __future__ import annotations

import ast
import hashlib
import importlib
import inspect
import random
import shlex
import threading
from collections import Counter
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from types import ModuleType

import numpy as np
from numpy.typing import NDArray

from audio.effects import within_range
from common.errors import ConfigurationError, UserError, one_line

Floats = NDArray[np.float32]
Transform = Callable[..., object]
"""`transform(samples=float32 [samples], sample_rate=Hz)` → float32 [samples]."""

AUDIOMENTATIONS = "audiomentations"
_FIELD = "--audio_augmentation.extra_transforms"
_TRIAL_S = 1.0
"""Length of the noise on which each transform is tried at the start of a run, in seconds."""
_DIGEST_NAME = "__dynamic_whisper_source_digest__"
_MISTAKES = (
    ImportError, AttributeError, NameError, TypeError, ValueError, LookupError, ArithmeticError, AssertionError,
    OSError, RuntimeError,
)  # fmt: skip
"""What a class raises for wrong arguments, wrong files, a package that is missing, or a slip in its code."""

_global_random = threading.Lock()
"""Held while a transform draws from the global random numbers: a Dask worker may have several threads."""


class TransformError(UserError):
    """A transform of `audio_augmentation.extra_transforms` can't be used, or returned something unusable."""


@dataclass(frozen=True)
class TransformSpec:
    """An entry of `extra_transforms`, parsed; nothing of it is imported yet."""

    text: str
    """As the user wrote it."""
    module: str
    class_name: str
    arguments: tuple[tuple[str, object], ...]

    @property
    def is_audiomentations(self) -> bool:
        """Whether the class is one of audiomentations, whose version then decides what it does."""
        return self.module.partition(".")[0] == AUDIOMENTATIONS


def parse_transform(text: str) -> TransformSpec:
    """Parses an entry of `extra_transforms`.

    Raises:
        ConfigurationError: it is not an import path followed by name=value pairs.
    """
    try:
        path, *pairs = shlex.split(text)
    except ValueError as error:  # nothing in it, or a quotation mark without its pair
        raise _wrong(text, str(error)) from error
    module, _, class_name = path.rpartition(".")
    if not module or not all(part.isidentifier() for part in path.split(".")):
        raise _wrong(text, f"{path!r} is no import path")
    arguments = {}
    for pair in pairs:
        name, equals, value = pair.partition("=")
        if not equals or not name.isidentifier():
            raise _wrong(text, f"{pair!r} is no argument")
        if name in arguments:
            raise _wrong(text, f"{name} is given twice")
        arguments[name] = _literal(value)
    return TransformSpec(text, module, class_name, tuple(arguments.items()))


def label_transforms(specs: Sequence[TransformSpec], taken: Collection[str]) -> list[str]:
    """A name for each, for labels and counts: the class's, with a number ("Gain#2") where it would not be unique.

    Args:
        specs: the entries.
        taken: names that mean something else.
    """
    count = Counter(spec.class_name for spec in specs)
    seen: Counter[str] = Counter()
    labels = []
    for spec in specs:
        name = spec.class_name
        seen[name] += 1
        labels.append(f"{name}#{seen[name]}" if count[name] > 1 or name in taken else name)
    return labels


def identity(spec: TransformSpec) -> str:
    """What besides its entry decides what a transform does: audiomentations' version, or the digest of its source file.

    Empty for a class of the user's own whose source can't be read.

    Raises:
        TransformError: its module can't be imported.
    """
    if spec.is_audiomentations:
        return f"{AUDIOMENTATIONS} {version(AUDIOMENTATIONS)}"
    return _source_digest(_import(spec))


class ExtraTransform:
    """One of the user's transforms, ready to be called."""

    def __init__(self, spec: TransformSpec, label: str, sample_rate: int) -> None:
        """
        Args:
            spec: the entry.
            label: its name in messages.
            sample_rate: of the waveforms, in Hz.

        Raises:
            TransformError: the module or the class does not exist, or it does not take the arguments.
        """
        self._label, self._sample_rate = label, sample_rate
        self._transform = _instantiate(spec)

    def __call__(self, waveform: Floats, rng: np.random.Generator) -> Floats:
        """float32 [samples] within ±1 → the same, possibly of another length.

        Raises:
            TransformError: the result is no waveform, empty, or holds NaN or infinity.
        """
        seed = int(rng.integers(2**32))
        with _global_random:
            random.seed(seed)
            np.random.seed(seed)  # noqa: NPY002  # audiomentations draws from the global generators
            result = self._transform(samples=waveform.copy(), sample_rate=self._sample_rate)
        if not isinstance(result, np.ndarray) or result.ndim != 1 or result.dtype.kind != "f" or not len(result):
            raise TransformError(f"{self._label} returned {_describe(result)}: expected float32 [samples]")
        if not np.isfinite(result).all():
            raise TransformError(f"{self._label} returned NaN or infinity: expected numbers within ±1")
        return within_range(result.astype(np.float32, copy=False))


def check_transforms(texts: Sequence[str], sample_rate: int) -> None:
    """Imports, instantiates and tries each transform, so that a mistake is told before anything that takes long.

    Raises:
        ConfigurationError: an entry can't be parsed.
        TransformError: a transform can't be used.
    """
    noise = np.random.default_rng(0).uniform(-0.1, 0.1, round(_TRIAL_S * sample_rate)).astype(np.float32)
    for text in texts:
        spec = parse_transform(text)
        transform = ExtraTransform(spec, spec.class_name, sample_rate)
        try:
            transform(noise, np.random.default_rng(0))
        except _MISTAKES as error:
            raise _unusable(spec, f"failed on a second of noise ({_short(error)})") from error


def _literal(text: str) -> object:
    try:
        return ast.literal_eval(text)
    except (ValueError, SyntaxError):
        return text


def _import(spec: TransformSpec) -> ModuleType:
    try:
        module = importlib.import_module(spec.module)
    except (ImportError, SyntaxError, NameError) as error:
        advice = "install it" if spec.is_audiomentations else "put its folder on PYTHONPATH, where the workers run too"
        raise _unusable(spec, f"cannot import {spec.module} ({_short(error)}): {advice}") from error
    if not spec.is_audiomentations:
        _source_digest(module)  # now, so that it is that of the code that was loaded
    return module


def _source_digest(module: ModuleType) -> str:
    """Digest of a module's source file as it was when the module was first used.

    It is kept with the module: a process that lives on after the file was edited still runs the code that it loaded.
    """
    if not hasattr(module, _DIGEST_NAME):
        try:
            digest = hashlib.sha256(Path(str(module.__file__)).read_bytes()).hexdigest()[:16]
        except (AttributeError, OSError):  # built in, or inside an archive
            digest = ""
        setattr(module, _DIGEST_NAME, digest)
    return str(getattr(module, _DIGEST_NAME))


def _instantiate(spec: TransformSpec) -> Transform:
    module = _import(spec)
    kind = getattr(module, spec.class_name, None)
    if not inspect.isclass(kind):
        raise _unusable(spec, f"{spec.module} has no class {spec.class_name}")
    arguments = dict(spec.arguments)
    try:
        if "p" in inspect.signature(kind).parameters:
            arguments.setdefault("p", 1.0)
        instance: object = kind(**arguments)
    except _MISTAKES as error:
        raise _unusable(spec, f"{spec.class_name} cannot be used ({_short(error)})") from error
    if not callable(instance):
        raise _unusable(spec, f"{spec.class_name} has no __call__(self, samples, sample_rate)")
    return instance


def _describe(result: object) -> str:
    if isinstance(result, np.ndarray):
        return f"an array of {result.dtype} with the shape {list(result.shape)}"
    return f"a {type(result).__name__}"


def _short(error: Exception) -> str:
    return f"{type(error).__name__}: {one_line(error)}"


def _wrong(text: str, reason: str) -> ConfigurationError:
    return ConfigurationError(
        f"audio_augmentation.extra_transforms has {text!r}: {reason}; expected "
        "'module.Class name=value …', such as 'audiomentations.ClippingDistortion min_percentile_threshold=0'"
    )


def _unusable(spec: TransformSpec, reason: str) -> TransformError:
    return TransformError(f"{_FIELD} {spec.text!r}: {reason}; correct it, or leave it out")
