"""What rescope costs: `python -m benchmarks`; on all Pythons and backends, for the docs: `python -m benchmarks.all`.

`work` and `rows` say what is done and by whom, `limit` and `peers` hold the contenders from elsewhere, `measuring` lets
them take turns, `singles` measures what is no race, `bounds` holds what was promised. `results` is what comes out,
`table` prints it, `report` and `plot` put it into the docs. `pieces` measures what a scope is made of.
"""
