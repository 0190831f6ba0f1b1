from benchmarks.gold_reward.runs import everything

everything(told=lambda line: print(line, flush=True))
