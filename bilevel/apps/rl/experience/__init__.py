"""Learning from experience: feedback that never ends moves a reward, and the reward a policy.

`min_x −satisfaction(π_x)` where `π_x = argmax_π E_π[r_x] − β KL(π ‖ reference)`, and nothing is
ever solved to the end: each piece of feedback makes one step of each level.

    loop = Loop(prompts=3, responses=5)
    for asked in loop:  # asked.prompt, asked.responses, asked.time
        better = ...  # 1.0 if the first of the two responses is
        metrics = loop.tell(Feedback(*asked, Kind.PREFERENCE, better))
"""

from bilevel.apps.rl.experience.feedback import Arrays, Feedback, Kind
from bilevel.apps.rl.experience.learning import Learner, problem
from bilevel.apps.rl.experience.loop import Asked, Loop
from bilevel.apps.rl.experience.users import SimulatedUser, regrets

__all__ = [
    "Arrays",
    "Asked",
    "Feedback",
    "Kind",
    "Learner",
    "Loop",
    "SimulatedUser",
    "problem",
    "regrets",
]
