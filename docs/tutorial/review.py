"""A writer answers, a reviewer says what is wrong with it, the writer mends it, until the reviewer is content."""

from protocols import Conversation, Flow, Phase, Role, Script


class ReviewPhase(Phase):
    WAITING = "waiting"
    WRITING = "writing"
    REVIEWING = "reviewing"
    CLOSED = "closed"


WAITING, WRITING, REVIEWING, CLOSED = ReviewPhase


class Review(Conversation):
    NAME, SOURCE = "review", "docs/tutorial"
    FLOW: Flow = {WAITING: {WRITING}, WRITING: {REVIEWING, CLOSED}, REVIEWING: {WRITING, CLOSED}, CLOSED: set()}
    ROLES = {"writer": Role("answers, and mends its answer"), "reviewer": Role("says what is wrong with it")}
    TEMPLATES = {
        "write": "${question}\nPut the final number in \\boxed{}.",
        "review": "${question}\n\nAn answer to it:\n${draft}\n\nSay OK if it is right, or else what is wrong with it.",
        "mend": "${question}\n\nA reviewer says:\n${review}\n\nAnswer again, the final number in \\boxed{}.",
    }

    def script(self) -> Script:
        draft = self.turn("writer", "answer", "write", thread="writer", answers=True)
        yield WRITING, [draft]
        while draft.reply and self.round < 2:
            review = self.turn("reviewer", "review", "review", shows={"draft": [draft]})
            yield REVIEWING, [review]
            if not review.reply or review.text.startswith("OK"):
                return self.conclude("accepted" if review.reply else "failures")
            self.round += 1
            draft = self.turn("writer", "answer", "mend", thread="writer", shows={"review": [review]}, answers=True)
            yield WRITING, [draft]
        return self.conclude("rounds" if self.latest else "no_replies")
