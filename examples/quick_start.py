"""From a dataset to a trained learner to a prediction on a new task: a few minutes on 2 cores.

python examples/quick_start.py
"""

from pathlib import Path

import gradshare as gs

if __name__ == "__main__":
    config = gs.RunConfig(dataset="glyphs", method="maml", epochs=4, iterations_per_epoch=30)
    gs.train(config, Path("runs/quick-start"), resume=True)  # what is trained is not trained again

    # A new task: five letters of scripts that were never trained on, one example of each.
    letters = gs.open_dataset("glyphs", Path("data")).splits["test"]
    task = gs.EpisodeSampler(letters, ways=5, shots=1, queries=15, seed=1).batch([0])

    classifier = gs.FewShotClassifier.from_run("runs/quick-start")
    classifier.fit(task.support_x[0], task.support_y[0])
    predicted = classifier.predict(task.query_x[0])
    print(f"{(predicted == task.query_y[0].numpy()).mean():.0%} of 75 new letters are right")
