#!/usr/bin/env python3
"""The oracles of the tokenizer tests, and the goldens in tests/golden/tokenizer made by them.

For each family a small vocabulary is trained on the family's published pre-tokenizer (`tokenizers`), or by SentencePiece
as Llama's was (spm), and written as a vocabulary-only GGUF; a few hundred of the hardest strings and their ids go beside
it. Usage: golden_tokenizer.py OUTPUT_FOLDER [--tokens 1500] [--strings 400]

Format of a .bin: "GTOK", u32 number of cases; each case: u8 flags (1: special tokens in the text are read, 2: the text
holds U+2581 and SPM gives it back as a space, 4: the text does not come back, since the vocabulary has no token for some
of its bytes or its normalisation takes spaces away), u32 length, the text, u32 number of ids, u32 ids. Little-endian. In split-*.bin the
numbers are the lengths in bytes of the words that the family's pre-tokenizer cuts.
"""
import argparse
import io
import json
import os
import random
import re
import struct
import sys
import sysconfig
import unicodedata

import gguf
import sentencepiece
import tokenizers
from sentencepiece import sentencepiece_model_pb2
from tokenizers import AddedToken, Regex, models, pre_tokenizers, trainers

UNKNOWN, CONTROL, USER_DEFINED = 2, 3, 4
READS_SPECIAL, HAS_U2581, LEAVES_OUT = 1, 2, 4

# The letters that DeepSeek LLM's published expression lists.
DEEPSEEK_LETTERS = (
    "A-Za-zµÀ-ÖØ-öø-ƺƼ-ƿǄ-ʓʕ-ʯͰ-ͳͶͷͻ-ͽͿΆΈ-ΊΌΎ-ΡΣ-ϵϷ-ҁҊ-ԯԱ-ՖႠ-ჅᎠ-Ᏽᏸ-ᏽᲐ-ᲺᲽ-Ჿᴀ-ᴫᵫ-ᵷᵹ-ᶚḀ-ἕἘ-Ἕἠ-ὅὈ-Ὅ"
    "ὐ-ὗὙὛὝὟ-ώᾀ-ᾴᾶ-ᾼιῂ-ῄῆ-ῌῐ-ΐῖ-Ίῠ-Ῥῲ-ῴῶ-ῼℂℇℊ-ℓℕℙ-ℝℤΩℨK-ℭℯ-ℴℹℼ-ℿⅅ-ⅉⅎↃↄⰀ-ⱻⱾ-ⳤⳫ-ⳮⳲⳳꙀ-ꙭꚀ-ꚛꜢ-ꝯꝱ-ꞇꞋ-"
    "ꞎꭰ-ꮿﬀ-ﬆﬓ-ﬗＡ-Ｚａ-ｚ𐐀-𐑏𐒰-𐓓𐓘-𐓻𐲀-𐲲𐳀-𐳲𑢠-𑣟𞤀-𞥃"
)
GPT2 = r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+"
CL100K = (r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}%s| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+"
          r"|\s+(?!\S)|\s+")
CJK = "[一-龥ࠀ-一가-\ud7ff]+"


def steps(*parts):
    """A pre-tokenizer: strings are isolating expressions, the rest are steps of `tokenizers` itself."""
    return pre_tokenizers.Sequence(
        [pre_tokenizers.Split(Regex(p), "isolated") if isinstance(p, str) else p for p in parts])


def byte_level(use_regex):
    return pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=use_regex)


def pretokenizer(family):
    """As the families' tokenizer.json files publish it; `default` has no such file and is llama.cpp's."""
    digits = pre_tokenizers.Digits(individual_digits=True)
    return {
        "llama-bpe": lambda: steps(CL100K % "{1,3}", byte_level(False)),
        "dbrx": lambda: steps(CL100K % "{1,3}", byte_level(False)),
        "qwen2": lambda: steps(CL100K % "", byte_level(False)),
        "gpt-2": lambda: byte_level(True),
        "smollm": lambda: steps(digits, byte_level(True)),
        "starcoder": lambda: steps(digits, byte_level(True)),
        "falcon": lambda: steps(pre_tokenizers.Punctuation("contiguous"), byte_level(True),
                                pre_tokenizers.Digits(individual_digits=False), "[0-9][0-9][0-9]"),
        "deepseek-llm": lambda: steps("[\r\n]", r"\s?[" + DEEPSEEK_LETTERS + "]+", r"\s?[!-/:-~！-／：-～‘-‟　-。]+",
                                      r"\s+$", CJK, digits, byte_level(False)),
        "deepseek-coder": lambda: steps("[\r\n]", r"\s?\p{L}+", r"\s?\p{P}+", CJK, digits, byte_level(False)),
        "default": lambda: steps(r"[\p{P}\$\+<=>\^~\|]+", GPT2, r"\p{N}+", "[0-9][0-9][0-9]", byte_level(False)),
    }[family]()


BPE_FAMILIES = ["smollm", "llama-bpe", "gpt-2", "qwen2", "falcon", "starcoder", "deepseek-llm", "deepseek-coder", "default",
                "dbrx"]


class BpeOracle:
    """`tokenizers` with the vocabulary, merges and token types of a GGUF file and the family's pre-tokenizer."""

    def __init__(self, family, pieces, merges, types):
        self.name = f"tokenizers {tokenizers.__version__}"
        self.pieces = pieces
        self.special = [p for p, t in zip(pieces, types) if t in (CONTROL, USER_DEFINED)]
        self.inserted = self.special
        self.spaced = False
        known = set(pieces)
        printable = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
        others = [b for b in range(256) if b not in printable]
        letters = {b: chr(b) for b in printable} | {b: chr(256 + i) for i, b in enumerate(others)}
        self.lacking = {b for b, letter in letters.items() if letter not in known}
        self.all = self._make(family, pieces, merges, types, (CONTROL, USER_DEFINED))
        self.user = self._make(family, pieces, merges, types, (USER_DEFINED,))

    @staticmethod
    def _make(family, pieces, merges, types, read):
        model = models.BPE(vocab={p: i for i, p in enumerate(pieces)}, merges=[tuple(m.split(" ")) for m in merges],
                           ignore_merges=family == "llama-bpe")
        made = tokenizers.Tokenizer(model)
        made.pre_tokenizer = pretokenizer(family)
        added = [AddedToken(p, special=t == CONTROL, normalized=False) for p, t in zip(pieces, types) if t in read]
        if added:
            made.add_tokens(added)
        assert made.get_vocab_size() == len(pieces)
        return made

    def encode(self, texts, special):
        batch = (self.all if special else self.user).encode_batch_fast(texts, add_special_tokens=False)
        return [e.ids for e in batch]


class SpmOracle:
    """SentencePiece. It never reads control tokens in a text: where they are to be read, the text is cut at them (the
    leftmost, the longest first) and each part goes to SentencePiece."""

    def __init__(self, model_bytes):
        self.name = f"sentencepiece {sentencepiece.__version__}"
        self.processor = sentencepiece.SentencePieceProcessor(model_proto=model_bytes)
        size = self.processor.get_piece_size()
        self.pieces = [self.processor.id_to_piece(i) for i in range(size)]
        control = [i for i in range(size) if self.processor.is_control(i) or self.processor.is_unknown(i)]
        self.control = {self.pieces[i]: i for i in control}
        self.special = list(self.control)
        types = [piece.type for piece in sentencepiece_model_pb2.ModelProto.FromString(model_bytes).pieces]
        user = [p for p, t in zip(self.pieces, types) if t == USER_DEFINED]
        # What random texts get: of Gemma's 6,249 and 165 a few dozen, its runs of white space among them.
        self.inserted = [p.replace("\u2581", " ") for p in user[::3]] + self.special[:16] + self.special[16:][-16:]
        self.spaced = True
        self.lacking = set()
        self.cut = re.compile("(" + "|".join(map(re.escape, sorted(self.control, key=len, reverse=True))) + ")")

    def encode(self, texts, special):
        if not special:
            return self.processor.encode(texts)
        out = []
        for text in texts:
            ids = []
            for part in self.cut.split(text):
                if part in self.control:
                    ids.append(self.control[part])
                elif part:
                    ids += self.processor.encode(part)
            out.append(ids)
        return out


def read_gguf_vocabulary(path):
    reader = gguf.GGUFReader(path)

    def get(key):
        field = reader.fields.get("tokenizer.ggml." + key)
        return None if field is None else field.contents()

    return {k: get(k) for k in ["model", "pre", "tokens", "merges", "token_type", "scores", "add_space_prefix",
                                "unknown_token_id"]}


def spm_model_of(vocabulary):
    """A SentencePiece model with the pieces of a GGUF vocabulary, normalising nothing, as Llama's does.

    Two things that converters lose come back: which piece is the unknown one (Gemma's files call it a control token),
    and U+2581 in user-defined pieces (Gemma's runs of spaces are stored as spaces; the model's own have U+2581).
    """
    proto = sentencepiece_model_pb2.ModelProto()
    types = list(vocabulary["token_type"])
    if UNKNOWN not in types:
        types[vocabulary["unknown_token_id"]] = UNKNOWN
    for piece, score, kind in zip(vocabulary["tokens"], vocabulary["scores"], types):
        if kind == USER_DEFINED:
            piece = piece.replace(" ", "\u2581")
        proto.pieces.add(piece=piece, score=score, type=kind)
    proto.trainer_spec.model_type = 2
    proto.trainer_spec.byte_fallback = True
    proto.normalizer_spec.name = "identity"
    proto.normalizer_spec.add_dummy_prefix = vocabulary["add_space_prefix"] in (None, True)
    proto.normalizer_spec.remove_extra_whitespaces = False
    return proto.SerializeToString()


def oracle_of_gguf(path, family):
    vocabulary = read_gguf_vocabulary(path)
    if vocabulary["model"] == "llama":
        return SpmOracle(spm_model_of(vocabulary))
    return BpeOracle(family, vocabulary["tokens"], vocabulary["merges"], vocabulary["token_type"])


# ---------------------------------------------------------------- strings

SCRIPT_RANGES = [
    (0x21, 0x7E), (0xA1, 0xFF), (0x100, 0x24F), (0x250, 0x2AF), (0x2B0, 0x2FF), (0x300, 0x36F), (0x370, 0x3FF),
    (0x400, 0x52F), (0x531, 0x58F), (0x591, 0x5F4), (0x600, 0x6FF), (0x700, 0x74F), (0x780, 0x7B1), (0x7C0, 0x7FF),
    (0x900, 0x97F), (0x980, 0x9FF), (0xA00, 0xA7F), (0xA80, 0xAFF), (0xB00, 0xB7F), (0xB80, 0xBFF), (0xC00, 0xC7F),
    (0xC80, 0xCFF), (0xD00, 0xD7F), (0xD80, 0xDFF), (0xE00, 0xE7F), (0xE80, 0xEFF), (0xF00, 0xFFF), (0x1000, 0x109F),
    (0x10A0, 0x10FF), (0x1100, 0x11FF), (0x1200, 0x137F), (0x13A0, 0x13FF), (0x1400, 0x167F), (0x1680, 0x169F),
    (0x16A0, 0x16FF), (0x1780, 0x17FF), (0x1800, 0x18AF), (0x1C80, 0x1CBF), (0x1D00, 0x1DBF), (0x1DC0, 0x1DFF),
    (0x1E00, 0x1EFF), (0x1F00, 0x1FFF), (0x2000, 0x206F), (0x2070, 0x209F), (0x20A0, 0x20CF), (0x20D0, 0x20FF),
    (0x2100, 0x214F), (0x2150, 0x218F), (0x2190, 0x23FF), (0x2400, 0x257F), (0x2580, 0x25FF), (0x2600, 0x27BF),
    (0x2C00, 0x2DFF), (0x2E00, 0x2E7F), (0x2E80, 0x2FDF), (0x3000, 0x303F), (0x3040, 0x30FF), (0x3100, 0x318F),
    (0x3200, 0x33FF), (0x3400, 0x4DBF), (0x4E00, 0x9FFF), (0xA000, 0xA4CF), (0xA640, 0xA7FF), (0xA800, 0xABFF),
    (0xAC00, 0xD7FF), (0xE000, 0xF8FF), (0xF900, 0xFAFF), (0xFB00, 0xFB4F), (0xFB50, 0xFDFF), (0xFE00, 0xFE6F),
    (0xFE70, 0xFEFF), (0xFF00, 0xFFEF), (0xFFF0, 0xFFFF), (0x10000, 0x100FF), (0x10280, 0x103DF), (0x10400, 0x104FF),
    (0x10800, 0x10FFF), (0x11000, 0x11FFF), (0x12000, 0x1254F), (0x13000, 0x1342F), (0x16800, 0x16FFF),
    (0x17000, 0x18CFF), (0x1B000, 0x1B2FF), (0x1D000, 0x1D37F), (0x1D400, 0x1D7FF), (0x1E000, 0x1EFFF),
    (0x1F000, 0x1F2FF), (0x1F300, 0x1F6FF), (0x1F700, 0x1FAFF), (0x20000, 0x2A6DF), (0xE0000, 0xE01EF),
    (0xF0000, 0xF00FF), (0x10FF00, 0x10FFFF)]
EMOJI = ["😀", "👩‍👩‍👧‍👦", "🏳️‍🌈", "👍🏽", "🇩🇪", "❤️", "1️⃣", "🧑🏿‍🚀", "☕", "🫠", "ⓘ", "™️"]
SPACES = [" "] * 8 + list("\n\n\n\r\t\v\f") + ["\r\n", "\u00a0", "\u0085", "\u1680", "\u2003", "\u200a", "\u2028", "\u2029",
                                              "\u202f", "\u205f", "\u3000", "\u200b", "\ufeff", "\u2581", "  ", "    "]
MARKS = ["'", "'s", "'S", "'t", "'re", "'RE", "'ve", "'LL", "'ll", "'d", "'m", "'ſ", "’s", "''", "``", "...", "!?", "$", "+=",
         "<=>", "^~|`", "—", "«»", "-", "_", "\\", "//", "%", "@#", "<|", "|>", "</s>", "<0x0A>", "[INST]", "。", "、", "！"]
PROSE = [
    "The quick brown fox jumps over the lazy dog; it's 3 o'clock, and they'll've gone by 12:45.",
    "Zwölf Boxkämpfer jagen Viktor quer über den großen Sylter Deich.",
    "Voix ambiguë d'un cœur qui au zéphyr préfère les jattes de kiwis.",
    "El pingüino Wenceslao hizo kilómetros bajo exhaustiva lluvia y frío; añoraba a su querido cachorro.",
    "Съешь же ещё этих мягких французских булок, да выпей чаю.",
    "Чуєш їх, доцю, га? Кумедна ж ти, прощайся без ґольфів!",
    "Γαζέες καὶ μυρτιὲς δὲν θὰ βρῶ πιὰ στὸ χρυσαφὶ ξέφωτο.",
    "我能吞下玻璃而不伤身体。今天是2024年5月17日，天气很好。",
    "いろはにほへと ちりぬるを、わがよたれぞ つねならむ。カタカナも少し。",
    "키스의 고유조건은 입술끼리 만나야 하고 특별한 기술은 필요치 않다.",
    "صِف خَلقَ خَودِ كَمِثلِ الشَمسِ إِذ بَزَغَت — يَحظى الضَجيعُ بِها نَجلاءَ مِعطارِ ١٢٣٤",
    "דג סקרן שט בים מאוכזב ולפתע מצא חברה.",
    "ऋषियों को सताने वाले दुष्ट राक्षसों के राजा रावण का सर्वनाश करने वाले विष्णुवतार भगवान श्रीराम। १२३",
    "เป็นมนุษย์สุดประเสริฐเลิศคุณค่า กว่าบรรดาฝูงสัตว์เดรัจฉาน ๑๒๓",
    "Pchnąć w tę łódź jeża lub ośm skrzyń fig. Příliš žluťoučký kůň úpěl ďábelské ódy.",
    "Pijamalı hasta yağız şoföre çabucak güvendi. IĞDIR'ın İSTANBUL'a uzaklığı.",
    "Tôi có thể ăn thủy tinh mà không hại gì. Do bạch kim rất quý nên sẽ dùng để lắp vô xương.",
    "for (int i = 0; i < n; ++i) { sum += a[i] * 0x1F; }  // O(n)\n\treturn sum == 42 ? 'y' : \"no\\n\";\n",
    "SELECT name, COUNT(*) AS n FROM users WHERE id >= 1000000 GROUP BY name HAVING n > 1;\r\n",
    "{\"key\": [1, 2.5e-10, null, true], \"näme\": \"Ω≈ç√∫˜µ≤≥÷\"}\n",
    "\\begin{equation} \\sum_{k=0}^{\\infty} \\frac{x^k}{k!} = e^x \\end{equation}",
    "https://example.org/a/b?c=d&e=%20f#g user.name+tag@example.co.uk 192.168.0.1 +49 (0)30 1234567",
]


def source_lines():
    """Code and prose from Python's own library, which every machine that runs this has."""
    folder = sysconfig.get_paths()["stdlib"]
    lines = []
    for name in ["argparse.py", "ast.py", "decimal.py", "difflib.py", "email/message.py", "html/entities.py", "inspect.py",
                 "json/decoder.py", "pydoc.py", "random.py", "statistics.py", "string.py", "textwrap.py", "typing.py"]:
        path = os.path.join(folder, name)
        if os.path.exists(path):
            with io.open(path, encoding="utf-8", newline="") as f:
                lines += f.read().splitlines(keepends=True)
    return [line for line in lines if line.strip()]


class Strings:
    """Seeded random strings: a third Unicode of every script, a third white space, digits and controls, a third real text,
    with special tokens in it."""

    def __init__(self, seed, special):
        self.random = random.Random(seed)
        self.special = special[:64] + special[-64:]
        self.lines = source_lines()

    def any_char(self):
        while True:
            c = self.random.randrange(0x110000)
            if not 0xD800 <= c < 0xE000:
                return chr(c)

    def script_char(self, ranges):
        low, high = self.random.choice(ranges)
        return chr(self.random.randint(low, high))

    def unicode(self):
        r = self.random
        ranges = r.sample(SCRIPT_RANGES, r.randint(1, 4))
        out = []
        for _ in range(r.randint(1, 40)):
            kind = r.random()
            if kind < 0.62:
                out.append(self.script_char(ranges))
            elif kind < 0.72:
                out.append(chr(r.choice([r.randint(0x300, 0x36F), 0x200D, 0xFE0F, 0x20E3, 0x1F3FB, r.randint(0x1AB0, 0x1AFF)])))
            elif kind < 0.78:
                out.append(r.choice(EMOJI))
            elif kind < 0.88:
                out.append(r.choice(SPACES[:8] + ["\n"]))
            elif kind < 0.94:
                out.append(self.any_char())
            else:
                out.append(r.choice(MARKS))
        return "".join(out)

    def blanks(self):
        r = self.random
        out = []
        for _ in range(r.randint(1, 40)):
            kind = r.random()
            if kind < 0.45:
                out.append(r.choice(SPACES) * (r.randint(1, 20) if r.random() < 0.1 else 1))
            elif kind < 0.65:
                out.append("".join(r.choice("0123456789") for _ in range(r.randint(1, 7))))
            elif kind < 0.70:
                out.append(r.choice("٣٤५六²³¹¼½¾ⅫⅣ①𝟘𝟡௧๑"))
            elif kind < 0.78:
                out.append(chr(r.randrange(0x20)))
            elif kind < 0.82:
                out.append(chr(r.choice([0x7F, 0x80, 0x85, 0x9F, 0xAD])))
            elif kind < 0.92:
                out.append(r.choice(MARKS))
            else:
                out.append(r.choice(["a", "B", "é", "中", "x1", "the", "Ω"]))
        return "".join(out)

    def text(self):
        r = self.random
        source = r.choice(self.lines) if r.random() < 0.6 else r.choice(PROSE)
        begin = r.randrange(len(source))
        text = source[begin:begin + r.randint(1, 90)]
        while r.random() < 0.3:
            at = r.randint(0, len(text))
            extra = r.choice(self.special) if self.special and r.random() < 0.8 else r.choice(MARKS + EMOJI + SPACES)
            text = text[:at] + (extra[:r.randint(1, len(extra))] if r.random() < 0.15 else extra) + text[at:]
        return text

    def next(self, index):
        return (self.unicode, self.blanks, self.text)[index % 3]()


def write_cases(path, cases):
    with open(path, "wb") as out:
        out.write(b"GTOK" + struct.pack("<I", len(cases)))
        for flags, text, ids in cases:
            data = text.encode("utf-8")
            out.write(struct.pack("<BI", flags, len(data)) + data + struct.pack(f"<I{len(ids)}I", len(ids), *ids))


def make_cases(oracle, texts, special):
    flags = READS_SPECIAL if special else 0
    def more(text):
        return ((HAS_U2581 if oracle.spaced and "\u2581" in text else 0) |
                (LEAVES_OUT if oracle.lacking.intersection(text.encode()) else 0))

    return [(flags | more(text), text, ids)
            for text, ids in zip(texts, oracle.encode(texts, special))]


def split_cases(family, texts):
    """Word lengths: the byte alphabet has one letter a byte."""
    step = pretokenizer(family)
    return [(0, text, [len(word) for word, _ in step.pre_tokenize_str(text)]) for text in texts]


# ---------------------------------------------------------------- committed goldens


def shape(text):
    """What the scanners look at, one letter a character."""
    names = {"\n": "n", "\r": "r", " ": "_", "'": "q"}
    return "".join(names.get(c) or ("w" if c.isspace() else unicodedata.category(c)[0]) for c in text)


def hardest(candidates, count):
    """The strings that show the most sequences of classes not seen so far, for their length."""
    seen, chosen = set(), []
    grams = {t: {s[i:i + 4] for s in [shape(t)] for i in range(len(s))} for t in candidates}
    left = list(candidates)
    while left and len(chosen) < count:
        sample = left[:400]
        best = max(sample, key=lambda t: len(grams[t] - seen) / (len(t.encode()) + 20))
        seen |= grams[best]
        chosen.append(best)
        left.remove(best)
    return chosen


def write_gguf(path, model, pre, pieces, types, merges=None, scores=None, bos=None, eos=None, unknown=None,
               space_prefix=None):
    writer = gguf.GGUFWriter(path, "llama")
    writer.add_tokenizer_model(model)
    writer.add_tokenizer_pre(pre)
    writer.add_token_list(pieces)
    writer.add_token_types(types)
    if merges is not None:
        writer.add_token_merges(merges)
    if scores is not None:
        writer.add_token_scores(scores)
    writer.add_bos_token_id(bos)
    writer.add_eos_token_id(eos)
    if unknown is not None:
        writer.add_unk_token_id(unknown)
    if space_prefix is not None:
        writer.add_add_space_prefix(space_prefix)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.close()


SPECIAL = ["<|begin|>", "<|im_end|>", "<|im", "<|endoftext|>"]
USER = ["<tool>", "<tool>>", "  \n", "naïve✓"]


def corpus(seed):
    strings = Strings(seed, [])
    return PROSE * 6 + strings.lines[::3] + [strings.next(i) for i in range(6000)]


def train_bpe(family, tokens, path, seed):
    made = tokenizers.Tokenizer(models.BPE())
    made.pre_tokenizer = pretokenizer(family)
    made.train_from_iterator(corpus(seed), trainers.BpeTrainer(
        vocab_size=tokens, special_tokens=SPECIAL, initial_alphabet=pre_tokenizers.ByteLevel.alphabet(), show_progress=False))
    data = json.loads(made.to_str())["model"]
    pieces = [p for p, _ in sorted(data["vocab"].items(), key=lambda kv: kv[1])] + USER
    merges = [" ".join(m) if isinstance(m, list) else m for m in data["merges"]]
    if family in ("llama-bpe", "dbrx"):  # words that no merge reaches: only the rule "a whole word is one token" finds them
        pieces += ["Ġzephyr", "qzx", "Ã©Ãł", "ĠÐ¶"]
        pieces = list(dict.fromkeys(pieces))
    types = [CONTROL if p in SPECIAL else USER_DEFINED if p in USER else 1 for p in pieces]
    write_gguf(path, "gpt2", family, pieces, types, merges=merges, bos=0, eos=1)


def train_spm_model(tokens, seed, **options):
    model = io.BytesIO()
    strings = Strings(seed, [])
    lines = PROSE * 6 + strings.lines[::3] + [t.replace("\x00", " ") for t in (strings.text() for _ in range(4000))]
    settings = dict(
        model_type="bpe", byte_fallback=True, normalization_rule_name="identity", remove_extra_whitespaces=False,
        split_digits=True, add_dummy_prefix=True, allow_whitespace_only_pieces=True, character_coverage=0.98,
        user_defined_symbols=["<tool>", "<tool>>", "naïve✓"], control_symbols=["<|im_end|>", "<|im"])
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(lines), model_writer=model, vocab_size=tokens, num_threads=1, minloglevel=2,
        max_sentence_length=100000, **(settings | options))
    return sentencepiece_model_pb2.ModelProto.FromString(model.getvalue())


def train_spm(tokens, model_path, gguf_path, seed):
    proto = train_spm_model(tokens, seed)
    with open(model_path, "wb") as out:
        out.write(proto.SerializeToString())
    write_gguf(gguf_path, "llama", "default", [p.piece for p in proto.pieces], [p.type for p in proto.pieces],
               scores=[p.score for p in proto.pieces], bos=1, eos=2)


def spm_variants(folder, tokens, strings_count, seed):
    """Models of other settings, for the reader of SentencePiece files: Gemma's (no prefix, runs of spaces as tokens), and
    one with all that is rare: no byte tokens, extra spaces removed, spaces inside pieces, pieces marked unused."""
    no_prefix = train_spm_model(tokens, seed, add_dummy_prefix=False,
                                user_defined_symbols=["\u2581" * n for n in range(2, 9)] + ["<tool>", "\n\n", "\n"])
    odd = train_spm_model(tokens, seed, byte_fallback=False, remove_extra_whitespaces=True, split_by_whitespace=False)
    long = [p for p in odd.pieces if p.type == 1 and len(p.piece) > 2]
    for piece in random.Random(seed).sample(long, len(long) // 3):
        piece.type = 5
    for name, proto in [("spm-noprefix", no_prefix), ("spm-odd", odd)]:
        data = proto.SerializeToString()
        with open(os.path.join(folder, name + ".model"), "wb") as out:
            out.write(data)
        oracle = SpmOracle(data)
        strings = Strings(seed + 2, oracle.special)
        texts = ["", " ", "   ", " a  b ", "\u2581"] + hardest([strings.next(i) for i in range(4 * strings_count)], strings_count)
        cases = make_cases(oracle, texts, False)
        if name == "spm-odd":
            cases = [(flags | LEAVES_OUT, text, ids) for flags, text, ids in cases]
        write_cases(os.path.join(folder, name + ".bin"), cases)
        print(f"{name}: {len(oracle.pieces)} tokens, {len(cases)} cases, by {oracle.name}")


def gemma_gguf(folder, tokens, strings_count, seed):
    """A vocabulary as Gemma's GGUFs hold it: user-defined runs of spaces stored as spaces where the model has U+2581, the
    unknown piece marked as a control token (its id is in a key), no prefix. The oracle is the model before that."""
    runs = ["\u2581" * n for n in range(2, 9)] + ["\n" * n for n in range(1, 5)] + ["\t", "\t\t", "<b>", "</b>", "<tool>"]
    proto = train_spm_model(tokens, seed, add_dummy_prefix=False, user_defined_symbols=runs)
    oracle = SpmOracle(proto.SerializeToString())
    path = os.path.join(folder, "spm-gemma.gguf")
    write_gguf(path, "llama", "default",
               [p.piece.replace("\u2581", " ") if p.type == USER_DEFINED else p.piece for p in proto.pieces],
               [CONTROL if p.type == UNKNOWN else p.type for p in proto.pieces],
               scores=[p.score for p in proto.pieces], bos=1, eos=2, unknown=0, space_prefix=False)
    again = oracle_of_gguf(path, "spm")
    strings = Strings(seed + 3, oracle.inserted)
    texts = ["", " ", "  ", "a  b   c", " " * 30, " \u2581", "\u2581\u2581 a", "\n\n\n\n\n", "<b> a</b>  <unk>", "\t\t\t"]
    texts += hardest([strings.next(i) for i in range(4 * strings_count)], strings_count)
    if again.encode(texts, True) != oracle.encode(texts, True):
        raise AssertionError("spm-gemma: the model made of the GGUF is not the one that it was written from")
    special = [t for t in texts if any(s in t for s in oracle.special)]
    cases = make_cases(oracle, texts, True) + make_cases(oracle, special, False)
    write_cases(os.path.join(folder, "spm-gemma.bin"), cases)
    print(f"spm-gemma: {len(oracle.pieces)} tokens, {len(cases)} cases, {os.path.getsize(path)} bytes, by {oracle.name}")


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("output")
    parser.add_argument("--tokens", type=int, default=1500)
    parser.add_argument("--strings", type=int, default=400)
    parser.add_argument("--seed", type=int, default=20)
    args = parser.parse_args()
    os.makedirs(args.output, exist_ok=True)
    spm_variants(args.output, args.tokens, args.strings // 2, args.seed)
    gemma_gguf(args.output, args.tokens, args.strings // 2, args.seed)
    for family in ["spm"] + BPE_FAMILIES:
        path = os.path.join(args.output, family + ".gguf")
        if family == "spm":
            train_spm(args.tokens, os.path.join(args.output, "spm.model"), path, args.seed)
            with open(os.path.join(args.output, "spm.model"), "rb") as f:
                oracle = SpmOracle(f.read())
        else:
            train_bpe(family, args.tokens, path, args.seed)
            oracle = oracle_of_gguf(path, family)
        strings = Strings(args.seed + 1, oracle.special + (USER if family != "spm" else ["<tool>", "<tool>>", "naïve✓"]))
        candidates = list(dict.fromkeys(strings.next(i) for i in range(12 * args.strings)))
        fixed = ["", " ", "  ", "\n", "a", " a", "\x00", "ſ's'S'ſ", "a zephyr qzx éà ж", "<|im<|im_end|>", "<tool>>><tool>",
                 "\u2581a \u2581", "naïve✓ naïve", "1234567 1 12 123 ½⅔²³", "don't DON'T we'Ve", "l'ſaint 'ſ'ſs'LLx'Tx", "x½y ²³¹ ¼¾ м¼ 1½2", "\u3000a\u3000，\u3000 b\n", "a" * 200, " " * 77, "ab" * 99]
        texts = fixed + hardest(candidates, args.strings)
        cases = make_cases(oracle, texts, True) + make_cases(oracle, [t for t in texts if any(s in t for s in oracle.special)],
                                                             False)
        out = os.path.join(args.output, family + ".bin")
        write_cases(out, cases)
        if family != "spm":
            texts += hardest(list(dict.fromkeys(strings.next(i) for i in range(9 * args.strings))), args.strings)
            write_cases(os.path.join(args.output, f"split-{family}.bin"), split_cases(family, texts))
        print(f"{family}: {len(oracle.pieces)} tokens, {len(cases)} cases, {os.path.getsize(path)} + {os.path.getsize(out)} "
              f"bytes, by {oracle.name}")


if __name__ == "__main__":
    sys.exit(main())
