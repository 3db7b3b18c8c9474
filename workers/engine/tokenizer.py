"""CLIP's tokenizer, by the tokenizers library alone: importing transformers takes seconds.

It does what transformers' CLIPTokenizer does with the same files. A test compares the two.
"""

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from tokenizers import AddedToken, Encoding, Regex, Tokenizer
from tokenizers.models import BPE
from tokenizers.normalizers import NFC, Lowercase, Replace
from tokenizers.normalizers import Sequence as Normalizers
from tokenizers.pre_tokenizers import ByteLevel, Split
from tokenizers.pre_tokenizers import Sequence as Splitters
from tokenizers.processors import RobertaProcessing

from workers.engine.model_checks import read_object

_WORDS = r"<\|startoftext\|>|<\|endoftext\|>|'s|'t|'re|'ve|'m|'ll|'d|[\p{L}]+|[\p{N}]|[^\s\p{L}\p{N}]+"
# The special tokens, in the order in which those that no file numbers are added.
_SPECIAL = ("bos_token", "eos_token", "unk_token", "sep_token", "pad_token", "cls_token", "mask_token")
_DEFAULTS = {"bos_token": "<|startoftext|>"} | dict.fromkeys(("eos_token", "unk_token", "pad_token"), "<|endoftext|>")


class ClipTokenizer:
    """Turns text into token numbers, with CLIP's marks around them. `pad` fills up what is shorter. Thread-safe."""

    def __init__(
        self,
        words: dict[str, int],
        merges: list[tuple[str, str]],
        special: Mapping[str, Any] = {},
        added: Sequence[AddedToken] = (),
    ) -> None:
        """`special`: those special tokens by name that differ from CLIP's. `added`: further tokens."""
        given = _DEFAULTS | dict(special)
        begin, end, unknown = (str(given[name]) for name in _SPECIAL[:3])
        self.backend = Tokenizer(
            BPE(words, merges, continuing_subword_prefix="", end_of_word_suffix="</w>", unk_token=unknown)
        )
        self.backend.normalizer = Normalizers([NFC(), Replace(Regex(r"\s+"), " "), Lowercase()])
        split = Split(Regex(_WORDS), behavior="removed", invert=True)
        self.backend.pre_tokenizer = Splitters([split, ByteLevel(add_prefix_space=False)])
        self.backend.add_tokens(list(_in_order(given, added)))
        marks = (end, self._number(end)), (begin, self._number(begin))
        self.backend.post_processor = RobertaProcessing(*marks, trim_offsets=False, add_prefix_space=False)
        self.pad = self._number(str(given["pad_token"]))

    def __call__(self, text: str) -> Encoding:
        """The numbers of a text's tokens (`ids`), and where each begins and ends in it (`offsets`)."""
        return self.backend.encode(text)

    def _number(self, text: str) -> int:
        number = self.backend.token_to_id(text)
        assert number is not None  # it was added, if it was not there
        return number


def _in_order(names: Mapping[str, Any], added: Sequence[AddedToken]) -> Iterator[AddedToken]:
    """The tokens to add: those that a file numbers, then the special ones that are not among them."""
    special = {str(names[name]): names[name] for name in _SPECIAL if names.get(name) is not None}
    for token in (*added, *(each for text, each in special.items() if text not in map(str, added))):
        made = AddedToken(token, special=True) if isinstance(token, str) else token
        made.special = made.special or str(made) in special
        yield made


def read_tokenizer(folder: Path) -> ClipTokenizer:
    """The tokenizer in a model's folder: `tokenizer.json`, or `vocab.json` and `merges.txt`.

    Raises UnsafeModelError where a file is not JSON.
    """
    config, saved = read_object(folder / "tokenizer_config.json"), _optional(folder / "tokenizer.json")
    if saved:
        words = saved["model"]["vocab"]
        pairs = (each.split(" ") if isinstance(each, str) else each for each in saved["model"]["merges"])
        merges = [(left, right) for left, right in pairs]
    else:
        words, merges = BPE.read_file(str(folder / "vocab.json"), str(folder / "merges.txt"))
    if "added_tokens_decoder" in config:
        numbered = {int(number): _token(each) for number, each in config["added_tokens_decoder"].items()}
    else:
        marked = _optional(folder / "special_tokens_map.json")
        config |= {name: _token(each, special=True) for name, each in marked.items() if name in _SPECIAL}
        numbered = _added(folder, config) | {each.pop("id"): _token(each) for each in saved.get("added_tokens", [])}
    by_text = {str(token): token for token in numbered.values()}
    special = {name: _token(config[name]) for name in _SPECIAL if config.get(name) is not None}
    special = {name: by_text.get(str(token), token) for name, token in special.items()}
    return ClipTokenizer(words, merges, special, [numbered[number] for number in sorted(numbered)])


def _optional(path: Path) -> dict[str, Any]:
    return read_object(path) if path.is_file() else {}


def _added(folder: Path, config: dict[str, Any]) -> dict[int, AddedToken]:
    """The tokens that an older transformers has saved beside the vocabulary."""
    special = {str(_token(config[name])) for name in _SPECIAL if config.get(name)}
    return {
        number: AddedToken(text, normalized=text not in special, special=text in special)
        for text, number in _optional(folder / "added_tokens.json").items()
    }


def _token(value: Any, **changes: bool) -> Any:
    """A token as JSON has it: its text, or an object with its flags."""
    if not isinstance(value, dict):
        return value
    return AddedToken(**{key: each for key, each in value.items() if key != "__type"} | changes)
