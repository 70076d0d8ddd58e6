#include "bisect/texts.h"

#include <algorithm>
#include <string>

#include "base/error.h"

namespace greta {
namespace {

constexpr std::string_view kText =
    R"(The workshop of the two Albrecht sisters stood at the lower end of Mill Street, between a bakery and a shop that sold rope. Above the door hung a balance with one pan missing. Strangers took it for a sign of neglect; in truth it had been hung that way on purpose, in the year the town was cheated over its flour, and nobody who had paid twice for the same sack ever asked what it meant.

Marta, the elder, made the instruments. Ines tested them. They had agreed on this when they were young, and they kept to it with some strictness: Marta was never present at a test, and Ines never touched a file. "If I had made it," Ines used to say, "I would know where it is good, and I would look there first." She looked instead where the drawing told her to look, in the order in which the drawing had been numbered, and she wrote down what she found before she allowed herself to think about it.

In the spring a letter came from the harbour office. Two of their barometers, bought on the same day and carried on the same ship, no longer agreed. On the quay they had shown the same pressure to a hair. Off the northern cape, during a night that the captain described at length, they had parted by three whole divisions, and since then neither would come back to the other. Which of the two was wrong? And would the makers be so kind as to replace it?

Marta wanted to send a new one at once. It was cheaper than a quarrel, she said, and the harbour was their best customer. But Ines put the letter on the bench and read it a second time. "They ask which one is wrong," she said. "They have only shown that the two are different. Perhaps both are wrong. Perhaps neither is, and they were read by different people, one standing and one lying in his bunk."

So the barometers were sent for, and on the ninth of May they lay side by side on the green cloth: numbers 114 and 115, brass, glass, a little salt in the seams. Ines did not begin with the needles. She began with the cases, then the screws, then the capsules; she weighed every part against its twin from the drawer, and each time she asked the same question: given exactly what this piece received, did it do what it should? A lever that passes on a wrong movement faithfully is a good lever. A spring that corrects an error it knows nothing about is a bad spring, however pleasant the result.

It took her four days. The neighbours' boy, who swept the floor and was paid in rolls, could not understand the delay. "You can see that 115 is high," he said. "Why not turn the screw until it is low?"

"Because then there would be two mistakes in it," said Ines, "and they would be friends. Two mistakes that are friends can live in a house for thirty years. One day the weather changes, or somebody moves the furniture, and they fall out; and then you have a fire, and no one remembers that there were ever two."

On the fourth evening she found it. It was not a spring or a lever at all. Between the second capsule and the third there was a washer, one fifth of a millimetre thick, which belonged to another model. It had been put there in the workshop, under their own lamp, and in calm air it changed nothing: the parts on either side of it simply took up the slack. Only when the pressure fell faster than it had ever fallen on the bench did the slack run out. Every piece had done what it should with what it was given. One of them had been given the wrong thing.

Marta looked at the washer for a long time. Then she took down the book in which all their work was entered and wrote beside number 115, in her small upright hand, what had been found, where, and by whom; and beside 114, to the boy's surprise, she wrote that it had been examined in the same way from end to end, that 62 parts had been compared, and that nothing had been found. "Why write that down?" he asked. "Nothing happened."

"Nothing was found," Marta said, "and that is something quite different. If I leave the line empty, whoever reads it in ten years will not know whether we looked. An empty line is not a clean one."

The answer to the harbour office was short. It said that the fault was theirs; that it lay in a single washer; that instruments numbered 109 to 131 had been made in the same month and would be opened, free of charge, in the order in which they could be got hold of; and that until then a reading taken in quickly falling weather should be compared with a second instrument from before that month. It gave the size of the error at three rates of fall, and it did not say that such a thing would never happen again. The captain, who had expected an apology and received a table, is reported to have read it twice and then to have pinned it to the wall of his cabin, next to the chart of the cape.

Of the twenty-three instruments, seventeen came back that summer. Four had the wrong washer. In one of those, a second fault had been hiding behind the first for so long that, once the washer was gone, the needle stood visibly crooked, and everyone agreed it had been better before. Ines repaired it anyway.)";

std::vector<std::string_view> paragraphs_of(std::string_view text) {
  std::vector<std::string_view> paragraphs;
  while (!text.empty()) {
    const size_t end = std::min(text.find("\n\n"), text.size());
    if (end > 0) paragraphs.push_back(text.substr(0, end));
    text.remove_prefix(std::min(end + 2, text.size()));
  }
  return paragraphs;
}

}  // namespace

std::string_view built_in_text() { return kText; }

std::vector<TokenId> prompt_of_length(const Tokenizer& tokenizer, size_t tokens, std::string_view text) {
  if (tokens == 0) fail("a prompt of 0 tokens: expected at least 1");
  const auto paragraphs = paragraphs_of(text);
  if (paragraphs.empty()) fail("the text for a prompt of {} tokens is empty", tokens);
  std::string readings;
  std::vector<TokenId> ids;
  // Two tokens more than are wanted: the last may be an end token, the one before may grow as the text goes
  // on.
  for (size_t reading = 1, wanted_bytes = tokens; ids.size() < tokens + 2;
       wanted_bytes = 2 * readings.size()) {
    for (; readings.size() <= wanted_bytes; ++reading) {
      readings += fmt::format("{}Reading {}.", reading == 1 ? "" : "\n\n", reading);
      for (size_t i = 0; i < paragraphs.size(); ++i)
        readings += fmt::format("\n\n{}", paragraphs[(reading - 1 + i) % paragraphs.size()]);
    }
    const size_t before = ids.size();
    ids = tokenizer.encode(readings);
    if (ids.size() <= before) fail("{} bytes of text give no more than {} tokens", readings.size(), before);
  }
  ids.resize(tokens);
  return ids;
}

}  // namespace greta
