"""Texts to try tokenizers on: ordinary ones, and ones that nobody would write."""

from __future__ import annotations

PROSE = """\
The keeper of the lighthouse wrote everything down. On the first page of the ledger stood the date
of his arrival, 3 November 1887, and below it, in the same small hand: "Wind from the north-east;
two lamps cleaned; one broken." Forty years later he hadn't missed an evening. He'd noted 14,611
sunsets, the price of oil (it rose from 9½ to 23 shillings), every ship that passed, and—once, in
pencil—that he was lonely. His daughter, who couldn't bear the sea, kept the books all the same;
they're in the museum at St Ives now, and visitors sometimes ask which of them is the best one.
"""

CODE = '''\
def nearest(points: list[tuple[float, float]], x: float, y: float) -> int | None:
    """Index of the point nearest to (x, y), or None if there are none."""
\tbest, at = float("inf"), None  # a tab, on purpose
    for i, (px, py) in enumerate(points):
        d = (px - x) ** 2 + (py - y) ** 2
        if d < best:
            best, at = d, i

    return at


template <typename T> struct Node { T value; Node* next = nullptr; };  // C++
for (let i = 0; i <= 0xFF; i++) { if (!seen[i] && a[i] !== b[i]) { seen[i] = `#${i}`; } }
SELECT name, COUNT(*) AS n FROM orders WHERE total >= 99.95 GROUP BY name;\r\n
'''

CHINESE = """\
灯塔的看守人把一切都记了下来。账本的第一页写着他到任的日期：一八八七年十一月三日。下面是同样细小的字迹：
“东北风；擦净两盏灯，碎了一盏。”四十年间，他没有漏过一个晚上。他记下了14611次日落、灯油的价钱（从9先令
涨到23先令）、每一艘驶过的船——还有一次，他用铅笔写道：他很孤独。龘靐齉爩，𠮷野家、𪚥，這些字並不常見。
"""

HOSTILE: dict[str, str] = {
    "empty": "",
    "one space": " ",
    "leading space": " hello",
    "leading spaces": "    hello",
    "trailing spaces": "hello   ",
    "spaces": " " * 1000,
    "tabs": "\t" * 257,
    "newlines": "\n" * 333,
    "carriage returns": "\r\n" * 50 + "\r\r\n\n\r",
    "all white space": "\t \n \v\f\r \x85\xa0\u1680\u2000\u2003\u2009\u200a\u2028\u2029\u202f\u205f"
    "\u3000 end",
    "no space at all": "\u200b\u200c\u200d\u2060\ufeff",
    "NUL": "a\x00b\x00\x00c",
    "control characters": "".join(map(chr, [*range(0x20), *range(0x7F, 0xA0)])),
    "combining marks": "e\u0301 a\u0308\u0323 Z\u0351\u036b\u0343\u036a\u0302\u0348 \u0301alone",
    "a tower of marks": "o" + "\u0316\u0317\u0318\u0319" * 40,
    "composed and not": "Å Å A\u030a ﬁ fi ½ 1⁄2 ｈａｌｆ ㎏",
    "Korean": "한국어 \u1112\u1161\u11ab\u1100\u116e\u11a8\u110b\u1165 각",
    "Indic": "क्षत्रिय ஸ்ரீ తెలుగు ไทยไม่มีช่องว่าง",
    "right to left": "שלום עולם مرحبا بالعالم ١٢٣",
    "overrides": "abc \u202edef\u202c \u2066ghi\u2069 \u200fjkl\u200e",
    "emoji": "👩‍👩‍👧‍👦 👨🏽‍🚀 🏴󠁧󠁢󠁥󠁮󠁧󠁿 🇩🇪🇫🇷🇦 ☺️ ☺︎ 1️⃣ 🫠🪿",
    "half an emoji": "👩\u200d \u200d👧 🏽 \ufe0f",
    "replacement characters": "\ufffd \ufffd\ufffd a\ufffdb",
    "noncharacters": "\ufffe\uffff\U0001fffe\U0010ffff\ufdd0",
    "private use": "\ue000\uf8ff\U000f0000\U0010fffd",
    "tags and variations": "\U000e0001\U000e0041\U000e007f\u180e\ufe00\U000e0100",
    "beyond the first plane": "𐍈𝕳𝖊𝖑𝖑𝖔 𓀀𓁐 𒀱 𝟘𝟙𝟚 🀄",
    "mixed scripts": "pаypаl Αpple Ӏ1l| 東京TOKYOとうきょう123東京",
    "digits": "0 00 000 1234567 3.14159 1e-9 ٣٤ Ⅷ ² ¾ 1,234,567.89",
    "punctuation": "!!!???...---===///\\\\\\'''\"\"\"```~~~^^^$$$%%%&&&***((([[[{{{<<<",
    "contractions": "I'll he's THEY'RE we'Ve 'tis 'S ’s don't",
    "SentencePiece's space": "▁ ▁▁ a▁b ▁hello _▁_ >▁</",
    "byte pieces spelled out": "<0x0A> <0x00><0xFF> <0xE2><0x96><0x81> <0xff> <0xG0>",
    "special tokens": "<s></s><unk><pad><bos><eos><mask> <|endoftext|><|im_start|>x<|im_end|>"
    "<|eot_id|><start_of_turn>user\n<end_of_turn> [INST] [/INST] <think> </think>",
    "nearly special tokens": "<bos <bos> bos> <<bos>> < bos > <BOS> <start_of_turn<end_of_turn>"
    "<unused0><unused6241><unused9999> [multimodal] <|im_<|im_end|>",
    "a very long word": "supercalifragilistic" * 60,
    "repetitions that overlap": "aaaaaaa abababababa abcabcabcabca hahahahahaha 1010101010101",
    "long runs": "a" * 500 + "=" * 300 + "é" * 200 + "中" * 200 + "😀" * 100 + "ab" * 200,
    "spaces and newlines": " \n  \n\n   \n\n\n \t\n \n" * 5,
    "every Latin-1 character": "".join(map(chr, range(256))),
    "the end of every plane": "".join(
        chr(plane << 16 | low) for plane in range(17) for low in (0xFFF0, 0xFFFD)
    ),
    "markup": '<div class="a"><h1>&nbsp;&amp;</h1><!-- --></div><table><tr><td></td></tr></table>',
    "escapes": "\\n \\u0041 %20 &#x41; \x1b[31mred\x1b[0m",
    "zalgo": "H̷̡̛̻e̸̢̨̋l̵̘̈́̕p̶̳̀̇",
}


def all_texts() -> dict[str, str]:
    """Every text above by name, and all hostile ones in one page."""
    page = "\n".join(HOSTILE.values())
    return {"prose": PROSE, "code": CODE, "Chinese": CHINESE, "a hostile page": page, **HOSTILE}
