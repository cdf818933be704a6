"""The commands of `bocb` besides train, sweep, analyze and bench."""
