"""Train an experiment, check its data, evaluate a run, predict from a run: the only room that wires training to evaluation."""
