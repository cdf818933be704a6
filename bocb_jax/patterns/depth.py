"""The order of layers along a network, from their names alone.

Files of weights keep no order (safetensors and Orbax sort by name), but the names tell it: what
comes in, stages and blocks by number, what comes out; inside a block the mixer before the MLP, and
each product after those that feed it.
"""

import re

# Words of a path, by where they stand beside their siblings. Unlisted words lie between.
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
# Parts that stand at the beginning of the stage of their number, or at its end.
_BEFORE = re.compile(r"(downsample_layers|downsamplers?|patch_embed)[._]?(\d+)")
_AFTER = re.compile(r"(transitions?)[._]?(\d+)")
_STAGE = re.compile(r"(denseblock|stages?|layers?|blocks?)[._]?(\d+)")


def network_order(names: list[str]) -> list[str]:
    """Sorts names of layers by depth.

    Args:
      names: paths with dots, such as "layer1.0.conv1".
    """
    return sorted(names, key=_key)


def _key(name: str):
    stage = ()
    for place, pattern in ((0, _BEFORE), (1, _STAGE), (2, _AFTER)):
        found = pattern.match(name)
        if found:
            # Those that carry a number are the body of the network, stage by stage.
            stage = ((_REST, int(found[2]), place),)
            name = name[found.end() :].lstrip(".")
            break
    return (*stage, *(part for word in name.split(".") if word for part in _word(word))), name


def _word(word):
    if word.isdigit():
        return [(_REST, int(word), 0)]
    numbers = tuple(int(digits) for digits in re.findall(r"\d+", word)) or (0,)
    for rank, pattern in enumerate(_ORDER):
        if pattern and re.fullmatch(pattern, word):
            return [(rank, numbers[0], 0)]
    return [(_REST, numbers[-1], 0)]
