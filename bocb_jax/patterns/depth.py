"""The order of layers along a network, from their names alone.

Files of weights keep no order (safetensors and Orbax sort by name), but names reveal it: the stem
first, then stages and blocks by number, then the head; inside a block the mixer before the MLP,
and each projection after those that feed it.
"""

import re

_Key = tuple[int, int, int]

# Words of a path by their position among their siblings. Words that are not listed come between.
_ORDER = [
    r"module|backbone|model|encoder|features",
    r"conv0|conv_stem|stem(_.*)?|patch_embed|embeddings?|conv1|norm0|bn1",
    r"[qkv]|qkv|q_proj|k_proj|v_proj|query|key|value|in_proj|sr|kv",
    r"norm1|conv2|bn2|attn|attention|token_mixer|mixer|mlp_tokens|dwconv|dw|depthwise|fc1|pwconv1",
    r"",  # anything else
    r"norm2|conv3|bn3|proj|out_proj|mlp|mlp_channels|ffn|fc2|pwconv2|proj_2",
    r"downsample|shortcut",
    r"conv_head|norm|fc_norm|pre_logits",
    r"head|heads|classifier|fc|linear|output",
]
_REST = _ORDER.index("")
# Modules that come before the stage with the same number, that are one, or that follow it.
_BEFORE = re.compile(r"(downsample_layers|downsamplers?|patch_embed)[._]?(\d+)")
_STAGE = re.compile(r"(denseblock|stages?|layers?|blocks?)[._]?(\d+)")
_AFTER = re.compile(r"(transitions?)[._]?(\d+)")


def network_order(names: list[str]) -> list[str]:
    """Sort names of layers by depth.

    Args:
      names: dotted paths, such as "layer1.0.conv1".
    """
    return sorted(names, key=_key)


def _key(name: str) -> tuple[tuple[_Key, ...], str]:
    stage: tuple[_Key, ...] = ()
    for position, pattern in enumerate((_BEFORE, _STAGE, _AFTER)):
        found = pattern.match(name)
        if found:
            # Numbered modules are the body of the network, stage by stage.
            stage = ((_REST, int(found[2]), position),)
            name = name[found.end() :].lstrip(".")
            break
    return (*stage, *(_word(word) for word in name.split(".") if word)), name


def _word(word: str) -> _Key:
    if word.isdigit():
        return _REST, int(word), 0
    numbers = [int(digits) for digits in re.findall(r"\d+", word)] or [0]
    for rank, pattern in enumerate(_ORDER):
        if pattern and re.fullmatch(pattern, word):
            return rank, numbers[0], 0
    return _REST, numbers[-1], 0
