"""Pipeline parallelism: the blocks of a model divided over ranks, with torch's schedules."""
