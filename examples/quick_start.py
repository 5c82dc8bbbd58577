"""From a dataset to a trained learner to a prediction on a new task: a few minutes on 2 cores.

python examples/quick_start.py
"""

import gradshare as gs

store = gs.open_dataset("glyphs", "data")  # letters; drawn now, if they are not there
train, validation, test = gs.image_splits(store, ways=5, shots=1)
learner = gs.maml(gs.Conv4(ways=5, image_size=28, channels=1), sharing=True)
run = gs.fit(
    learner, train, validation, epochs=4, iterations=30, out="runs/quick-start", resume="auto"
)
print(run.evaluate(test, tasks=200))

task = test.batch([1000])  # five letters of scripts that were never trained on
classifier = gs.FewShotClassifier(run).fit(task.support_x[0], task.support_y[0])
print(f"{classifier.score(task.query_x[0], task.query_y[0]):.0%} of 75 new letters are right")
