"""What Loom costs, measured beside what it stands on: `python -m bench`.

Each question is a file of its own; its head says what the number means and how it was set up. Loom and its rivals take
turns within one run, and a figure counts as the ratio of the two.

- `ask.py pipeline.py tell.py tensor.py spawn.py restart.py memory.py start.py`   the questions
- `arena_lease.py arena_hand.py arena_fanout.py arena_ray.py`   those about shared memory
- `room.py`       whether the machine has the memory that a question needs
- `question.py`   what a question is, and how one is put: turns, rounds, ratios
- `figures.py`    medians, p99 and ratios, and the structs that the JSON file is made of
- `actors.py`     the actor that is measured, and the node it lives on
- `peers.py`      what the rivals run in their processes; imports nothing of Loom
- `rival.py`      starting and ending those processes
- `report.py`     the table, as text and as Markdown, and the JSON file
- `machine.py`    on what machine, with which versions
"""
