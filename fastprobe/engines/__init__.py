"""Who executes the units of a run. An engine is a function

    execute(compute, units, **options) -> iterator of (unit, columns)

that may finish units in any order; results never depend on it.
"""
