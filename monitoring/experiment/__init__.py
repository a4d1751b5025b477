"""Live experiments, in four steps; each has one file to begin with, and beside it what that file uses.

plan     design.py   candidates, forecast, sample size, file    plan.py: what is fixed before the first user; power.py
assign   assign.py   who is in which variant                    file.py: the experiment's file, which the service reads
read     read.py     from a table to effects and intervals      table.py, checks.py, stats.py; live.py: from the logs
decide   decide.py   ship, hold or roll back, and why           report.py: pages; forecast.py: did offline predict it?
"""
