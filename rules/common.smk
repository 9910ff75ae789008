# What several rules ask for as input.


def not_outdated_by_validation(place):
    """A file of a shard; of a validation shard a new one waits for the next training."""
    return branch(
        lambda wildcards: wildcards.shard in run.training,
        then=place,
        otherwise=ancient(place),
    )


def of_labels(place, end, shards=None):
    """Input function: files of the labels that a plan is for or a training learns, one a shard."""

    def files(wildcards):
        labels = wildcards.get("labels") or labels_of(wildcards.variant)
        found = place(labels=labels, round=wildcards.round)
        return run.each(found, shards or run.fused_shards(labels), end)

    return files


def gpus_to_predict(wildcards, input, rulename):
    """Resource: no GPU for a shard without a case to predict, known once its cases are dealt."""
    wanted = workflow.get_rule(rulename).params.wanted
    return run.gpus_to_predict(wanted, input)


def plan_of(name):
    """Input function of a training: a file of the plan for the labels that it learns."""
    return lambda wildcards: paths.student_plan(
        name, labels_of(wildcards.variant), wildcards.round
    )


def of_split(place, end=""):
    """Input function: a file for each shard of a split."""
    shards = dict(validation=run.validation, test=run.test)
    return lambda wildcards: run.each(place, shards[wildcards.split], end)


def of_students(place, end="", each=("",)):
    """A file of each student that is a result, and of each shard or split."""
    return [
        place(*arm.place, *filter(None, [one])) + end
        for arm in run.students
        for one in each
    ]


def of_fusions(end, fusions=fused_labels(settings)):
    """A file of each shard of some fused labels."""
    return [
        path
        for number, labels in fusions
        for path in run.each(
            paths.fusion(labels, number), run.fused_shards(labels), end
        )
    ]
