"""Linear multistep with even steps: how the newest evaluations and those before them are weighed."""

#: the weights by how many evaluations there are, the newest's first; their number is the order
ADAMS_BASHFORTH = {
    1: (1.0,),
    2: (3 / 2, -1 / 2),
    3: (23 / 12, -16 / 12, 5 / 12),
    4: (55 / 24, -59 / 24, 37 / 24, -9 / 24),
}
