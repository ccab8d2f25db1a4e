"""The public code of arXiv 2510.10060 as its state dicts and its mathematics, written out pair by pair.

Independent of the converters and of the operator: `public_layer` and `public_network` compute from a
state dict in the public code's own keys and conventions (fixtures/SOURCE.md names that code).
"""

from itertools import product

import torch
import torch.nn.functional as F

from models.mixers.translution import RELATIVE

NAMES = [
    *(f"{family}/{low}{letters}" for family, low, letters in product(("vit", "gpt"), ("", "lor_"), RELATIVE)),
    "vit/rope_v",
    "vit/lor_rope_v",
]
C, H, E, R, MLP = 16, 2, 8, 4, 24
D, ROWS, COLUMNS, LENGTH = H * E, 3, 4, 7


def grid_of(name):
    return (ROWS, COLUMNS) if name.startswith("vit") else (LENGTH,)


def layer_shapes(name, grid=None, heads=H, head_dim=E):
    """The keys and shapes of a layer of the public code; vit/attention and gpt/attention too."""
    inner, narrow, grid = heads * head_dim, heads * R, grid or grid_of(name)
    entries = grid[0] if len(grid) == 1 else (2 * grid[0] - 1) * (2 * grid[1] - 1) + 3
    letters = name.split("/")[1].split("_")[-1]
    shapes: dict[str, tuple[int, ...]] = {"norm.weight": (C,), "norm.bias": (C,)}
    if letters == "attention":
        shapes["to_qkv.weight"] = (3 * inner, C)
    elif "lor_" in name:
        shapes["to_qkv.weight"] = (3 * inner, C)
        for letter in ("qk" if letters != "v" else "") + ("v" if "v" in letters else ""):
            shapes[f"to_{letter}1.weight"] = (narrow, C)
        shapes |= {f"to_{letter}2.unique_params": (entries, narrow, narrow) for letter in letters}
        shapes |= {"to_v3.weight": (inner, narrow)} if "v" in letters else {}
    else:
        rest = "".join(letter for letter in "qkv" if letter not in letters)
        shapes |= {f"to_{rest}.weight": (len(rest) * inner, C)} if rest else {}
        shapes |= {f"to_{letter}.unique_params": (entries, C, inner) for letter in letters}
    if not (heads == 1 and head_dim == C):
        shapes |= {"to_out.0.weight": (C, inner), "to_out.0.bias": (C,)}
    return shapes


def random_state(shapes):
    return {key: torch.randn(shape, dtype=torch.double) * 0.3 for key, shape in shapes.items()}


def pair_index(grid):
    """index[i, j] into the banks of keys and values, and index[j, i] into that of queries."""
    if len(grid) == 1:
        (n,) = grid
        forward = torch.tensor([[max(0, i - j) for j in range(n)] for i in range(n)])
        return forward, torch.tensor([[min(0, j - i) + n - 1 for j in range(n)] for i in range(n)])
    rows, columns = grid
    cells = list(product(range(rows), range(columns)))
    offsets = (2 * rows - 1) * (2 * columns - 1)
    index = torch.empty(len(cells) + 1, len(cells) + 1, dtype=torch.long)
    index[0, 0], index[0, 1:], index[1:, 0] = offsets, offsets + 1, offsets + 2
    for (i, a), (j, b) in product(enumerate(cells, 1), enumerate(cells, 1)):
        index[i, j] = (a[0] - b[0] + rows - 1) * (2 * columns - 1) + a[1] - b[1] + columns - 1
    return index, index.t()


def rotation_tables(grid, head_dim):
    """cos and sin [grid tokens, E]."""
    width = head_dim // len(grid)
    freqs = 1 / 10_000 ** (torch.arange(0, width, 2).double() / width)
    half = torch.stack([torch.cat([p * freqs for p in cell]) for cell in product(*map(range, grid))])
    return torch.cat((half, half), -1).cos(), torch.cat((half, half), -1).sin()


def public_layer(name, P, x, heads=H, grid=None, rotate=None):
    """What the public layer `name` computes of x with the state dict P, every pair on its own."""
    grid = grid or grid_of(name)
    rotate = name.endswith("lor_rope_v") if rotate is None else rotate
    index, query_index = pair_index(grid)
    f = F.layer_norm(x, (C,), P["norm.weight"], P["norm.bias"])
    N = f.shape[1]

    def pairs(f, letter, key, out=None):
        """[B, i, j, H, …] of one letter, by a bank or by a matrix."""
        side = "i" if letter == "q" else "j"
        if f"{key}.unique_params" in P:
            bank = P[f"{key}.unique_params"][query_index if letter == "q" else index]
            out = torch.einsum(f"b{side}c,ijcd->bijd", f, bank)
        else:
            out = f[:, :, None] if letter == "q" else f[:, None]
            out = out.expand(-1, N, N, -1)
        return out.unflatten(-1, (heads, -1))

    shared = {}
    for group in ("qkv", "qk", "qv", "kv", "q", "k", "v"):
        if f"to_{group}.weight" in P:
            shared |= dict(zip(group, (f @ P[f"to_{group}.weight"].t()).chunk(len(group), -1), strict=True))
    if rotate:
        cos, sin = rotation_tables(grid, D // heads)
        skip = N - len(cos)
        for letter in "qk":
            t = shared[letter].unflatten(-1, (heads, -1))
            left, right = t.chunk(2, -1)
            turned = t * cos[:, None] if not skip else torch.cat((t[:, :1], t[:, 1:] * cos[:, None]), 1)
            turned[:, skip:] += torch.cat((-right, left), -1)[:, skip:] * sin[:, None]
            shared[letter] = turned.flatten(2)
    q, k, v = (pairs(shared.get(letter, f), letter, f"to_{letter}") for letter in "qkv")
    a = (q * k).sum(-1)
    if "to_q1.weight" in P:
        q2, k2 = (pairs(f @ P[f"to_{letter}1.weight"].t(), letter, f"to_{letter}2") for letter in "qk")
        a = (a + (q2 * k2).sum(-1)) / 2
    a = a / q.shape[-1] ** 0.5
    if len(grid) == 1:
        a = a.masked_fill(torch.ones(N, N).triu(1).bool()[:, :, None], -torch.inf)
    alpha = a.softmax(2)[..., None]
    out = (alpha * v).sum(2).flatten(2)
    if "to_v1.weight" in P:
        narrow = (alpha * pairs(f @ P["to_v1.weight"].t(), "v", "to_v2")).sum(2).flatten(2)
        out = (out + narrow @ P["to_v3.weight"].t()) / 2
    return out @ P["to_out.0.weight"].t() + P["to_out.0.bias"] if "to_out.0.weight" in P else out


SIDE, PATCH, CHANNELS, CLASSES, V = 3, 2, 3, 5, 11
NETS = {  # the layers' names, the module that holds them, whether positions are learned
    "vit-lor_kv": (["vit/lor_kv"] * 2, "translution", False),
    "vit-qkv-positions": (["vit/qkv"], "translution", True),
    "vit-hybrid": (["vit/lor_v", "vit/attention"], "translution", False),
    "vit-hybrid-rope_v": (["vit/rope_v", "vit/rope_attention"], "translution", False),
    "vit-lor_rope_v": (["vit/lor_rope_v"], "translution", False),
    "vit-attention": (["vit/attention"] * 2, "transformer", True),
    "vit-rope_attention": (["vit/rope_attention"], "transformer", True),
    "gpt-qkv": (["gpt/qkv"] * 2, "translution", False),
    "gpt-lor_q-positions": (["gpt/lor_q"], "translution", True),
    "gpt-attention": (["gpt/attention"] * 2, "transformer", True),
    "gpt-rope_attention": (["gpt/rope_attention"], "transformer", False),
    "gpt-hybrid": (["gpt/k", "gpt/attention"], "translution", False),
}


def layer_buffers(name, body, grid):
    """What the public code saves beside a layer's parameters."""
    buffers = {}
    if name.startswith("gpt") and (body == "transformer" or "attention" not in name):
        buffers["causal"] = torch.ones(LENGTH, LENGTH).tril()[None, None]
    if "rope" in name:
        module = "rope" if name.startswith("vit") else "rotary_emb"
        for key, table in zip(("cos", "sin"), rotation_tables(grid, E), strict=True):
            table = table.float().unflatten(0, grid)[None]
            buffers[f"{module}.{key}_cached"] = table if module == "rope" else table[None]
    return buffers


def network_state(net):
    """A state dict of a whole net of the public code."""
    names, body, positions = NETS[net]
    torch.manual_seed(0)
    vit = net.startswith("vit")
    grid = (SIDE, SIDE) if vit else (LENGTH,)
    shapes, buffers = {}, {}

    def norm(key, width=C):
        shapes.update({f"{key}.weight": (width,), f"{key}.bias": (width,)})

    for index, name in enumerate(names):
        at = f"{body}.layers.{index}."
        shapes |= {f"{at}0.{key}": shape for key, shape in layer_shapes(name, grid).items()}
        buffers |= {f"{at}0.{key}": t for key, t in layer_buffers(name, body, grid).items()}
        norm(f"{at}1.net.0")
        shapes |= {f"{at}1.net.1.weight": (MLP, C), f"{at}1.net.1.bias": (MLP,)}
        shapes |= {f"{at}1.net.4.weight": (C, MLP), f"{at}1.net.4.bias": (C,)}
    norm(f"{body}.norm")
    if vit:
        norm("to_patch_embedding.1", CHANNELS * PATCH**2)
        shapes |= {"to_patch_embedding.2.weight": (C, CHANNELS * PATCH**2), "to_patch_embedding.2.bias": (C,)}
        norm("to_patch_embedding.3")
        shapes |= {"cls_token": (1, 1, C)} | ({"pos_embedding": (1, SIDE**2 + 1, C)} if positions else {})
        shapes |= {"mlp_head.weight": (CLASSES, C), "mlp_head.bias": (CLASSES,)}
    else:
        norm("norm")
        shapes |= {"wte.weight": (V, C), "output_head.weight": (V, C)}
        shapes |= {"wpe.weight": (LENGTH, C)} if positions else {}
    return random_state(shapes) | buffers


def network_input(net):
    torch.manual_seed(1)
    size = SIDE * PATCH
    return (
        torch.randn(2, CHANNELS, size, size).double()
        if net.startswith("vit")
        else torch.randint(V, (2, LENGTH))
    )


def public_network(net, P, inputs):
    """The logits of a whole net."""
    names, body, positions = NETS[net]

    def norm(key, x):
        return F.layer_norm(x, x.shape[-1:], P[f"{key}.weight"], P[f"{key}.bias"])

    def linear(key, x):
        return F.linear(x, P[f"{key}.weight"], P[f"{key}.bias"])

    grid = (SIDE, SIDE) if net.startswith("vit") else (LENGTH,)
    if net.startswith("vit"):
        cells = [(r * PATCH, c * PATCH) for r, c in product(range(SIDE), repeat=2)]
        patches = [
            inputs[:, :, r : r + PATCH, c : c + PATCH].permute(0, 2, 3, 1).flatten(1) for r, c in cells
        ]
        x = norm("to_patch_embedding.1", torch.stack(patches, 1))
        x = norm("to_patch_embedding.3", linear("to_patch_embedding.2", x))
        x = torch.cat((P["cls_token"].expand(len(x), -1, -1), x), 1)
        x = x + P["pos_embedding"] if positions else x
    else:
        x = P["wte.weight"][inputs] + (P["wpe.weight"] if positions else 0)
    for index, name in enumerate(names):
        at = f"{body}.layers.{index}."
        layer = {key.removeprefix(f"{at}0."): t for key, t in P.items() if key.startswith(f"{at}0.")}
        rotate = "rope" in name and name != "vit/rope_v"
        x = x + public_layer(name, layer, x, grid=grid, rotate=rotate)
        x = x + linear(f"{at}1.net.4", F.gelu(linear(f"{at}1.net.1", norm(f"{at}1.net.0", x))))
    x = norm(f"{body}.norm", x)
    return (
        linear("mlp_head", x[:, 0])
        if net.startswith("vit")
        else norm("norm", x) @ P["output_head.weight"].t()
    )
