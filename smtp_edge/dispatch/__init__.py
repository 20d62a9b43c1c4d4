"""From claimed deliveries to attempts and their ends: the dispatcher and what it is made of.

dispatcher   the conductor: lines of waiting mail, a hop at the last moment
lines        what waits, class by class; and why
places       who is in memory, and how much of it each class has
choosing     what route sinks are asked, and which of their hops is free
attempts     transactions under way
settlement   what becomes of a delivery after an attempt (pure)
endings      that decision on disk, also when the disk refuses for a while
refill       mail from disk while there is room
"""
