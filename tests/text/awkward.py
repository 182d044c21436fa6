# ruff: noqa: E501, RUF001
"""Texts that tokenizers have got wrong, and the special tokens of the vocabularies that are trained here.

Knows: strings. Does not know: tokenizers.
"""

from __future__ import annotations

import random

SPECIALS = ["<|endoftext|>", "<|im_start|>", "<|im_end|>", "<|eot_id|>"]
USER_DEFINED = ["<think>", "</think>"]

LINES = [
    "The quick brown fox doesn't jump over the lazy dog; it'll sleep, they've said, and I'd agree.",
    "Die Größe der Straße überraschte Jürgen sehr, daß er schwieg.",
    "L'été à la française, où naît le cœur garçon.",
    "Съешь же ещё этих мягких французских булок, да выпей чаю.",
    "いろはにほへと ちりぬるを 我が世誰ぞ 常ならむ カタカナ",
    "天地玄黄 宇宙洪荒 日月盈昃 辰宿列张 你好世界",
    "다람쥐 헌 쳇바퀴에 타고파",
    "نص حكيم له سر قاطع وذو شأن عظيم",
    "עטלף אבק נס דרך מזגן שהתפוצץ כי חם",
    "ऋषियों को सताने वाले दुष्ट राक्षसों के राजा रावण",
    "😀 😃 😄 👩‍👩‍👧‍👦 🏳️‍🌈 👍🏽 emoji",
    "x = 12345 + 67.89 - 3e-10; y[0] += 0xFF  # comment",
]


def awkward() -> list[str]:
    """More than 300 strings that tokenizers have got wrong."""
    pieces = [
        "", " ", "  ", "\n", "\r\n", "\t", "\0", "\x01\x02\x1b[0m", "\x7f\x80\x85", "a\0b", "\ufeff", "\ufffd", "\uffff",
        "\u00a0", "\u2003\u200b", "\u2028x\u2029", "\u3000全角", "\u202eRTL\u202c", "a\u0301", "e\u0301\u0302\u0323",
        "\u1100\u1161\u11a8", "Å\u212b", "ﬁ ligature ﬀ", "①②Ⅷ½²", "१२३४", "٠١٢٣", "𝟘𝟙𝟚", "𝔘𝔫𝔦𝔠𝔬𝔡𝔢", "🇩🇪🇫🇷",
        "👩‍👩‍👧‍👦", "👍🏽👎🏿", "🏳️‍🌈", "❤️", "\u200d\u200d", "Z͑ͫ̓ͪ̂ͫ̽͏̴̙̤̞͉͚̯̞̠͍A̴̵̜̰͔ͫ͗͢L", "ﷺ", "İıſẞß", "ǅ", "\U0010ffff", "\ue000",
        "don't", "DON'T I'LL we'Ve it'S", "'s't're", "’s", "I'm'll'd", "CamelCaseWORDsHTTPServer2Go", "snake_case__x",
        "<0x0A>", "<0xFF>", "▁", "▁▁a▁", "a▁b", "Ġ", "Ġhello", "Ċ", "<unk>", "<s>", "</s>", "<s>x</s>", "<pad>",
        *SPECIALS, *USER_DEFINED, "<|im_start|>system\nhi<|im_end|>\n", "<|im_end|><|im_end|>", "a<|im_end|>b", "<|im_end",
        " <|im_end|> ", "<think> x </think>", "[INST] hi [/INST]", "<start_of_turn>user\nhi<end_of_turn>", "{{ bos_token }}",
        "def f(x):\n    return x  # done\n", "\tif a:\n\t\tb()\n", "a  =  b;", "#include <stdio.h>\r\n", "// ---- //",
        '{"a": [1, 2.5e-3, null], "b": "\\u00e9"}', "<p class='x'>&amp;</p>", "https://a.b/c?d=e&f=%20#g", "a@b.co",
        "0", "12", "123", "1234", "12345678901234567890", "1,234.56", "3.14159", "-1", "1e10", "0x1F", "2024-01-31T12:00Z",
        "٣.١٤", "१,२", "!!!", "...", "?!?!", "—–-", "“quoted”", "$€£¥₿", "^_^", "(╯°□°)╯︵ ┻━┻", "\\n\\t", "a/b/c//", "/\n/",
        "你好，世界！", "日本語とEnglishの混在", "한국어 문장", "ไทยไม่มีช่องว่าง", "العربية 123 مختلط", "שלום world", "हिन्दी",
        "ελληνικά", "Ｆｕｌｌｗｉｄｔｈ １２３", "ｶﾞ", "ñ n\u0303", "Ünïcödé", " leading", "trailing ", "  two  between  ",
        "\n\n\nparagraphs\n\n\n", " \n \n ", "\t \t", "x\n", "\nx", "a \n b", "a\r\rb", "x   ", "   x", "。。。", "a\u00a0\u00a0b",
    ]  # fmt: skip
    runs = [c * n for c in (" ", "\n", "a", "0", "é", "😀", "\t", "=", "\0", "世") for n in (3, 17, 64, 500)]
    runs += [" " * n + "x" for n in (1, 2, 3, 4, 7, 8, 16, 31)] + ["x" + "\n" * n + "y" for n in (1, 2, 3, 4, 9)]
    rng = random.Random(7)
    mixed = ["".join(rng.choices(pieces, k=rng.randint(2, 6))) for _ in range(110)]
    odd = [
        "".join(chr(rng.choice((rng.randrange(0x20, 0x500), rng.randrange(0x10000)))) for _ in range(30))
        for _ in range(25)
    ]
    odd = [s.encode("utf-16", "surrogatepass").decode("utf-16", "replace") for s in odd]
    return list(dict.fromkeys(pieces + runs + mixed + odd))
