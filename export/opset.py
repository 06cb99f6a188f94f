"""The opset of the canonical graphs."""

#: GroupNormalization is native from 21, Attention from 23: the graph that every lowering starts from
CANONICAL_OPSET = 23
