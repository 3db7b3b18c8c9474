"""A discrete-event simulation of the scheduler on simulated devices: `python -m scheduler.simulation --help`.

It drives the real `scheduler.core.Scheduler`: the simulated devices carry out its commands and report events, as the
worker processes do, and the clock jumps from one event to the next. So an hour of traffic on eight GPUs takes minutes
on a laptop, and the same seed gives the same result. Simpler schedulers run on the same arrivals for comparison.

- `arrivals`: who asks for what, and when
- `devices`: what a step takes, slots, failures
- `simulator`: the clock, and the loop around a scheduler
- `baselines`: simpler schedulers
- `preemption`: the real scheduler, and images that give up their places
- `bounds`: what no scheduler can beat
- `report`: figures, table, plot
"""
