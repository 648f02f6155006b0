// Words of recognised tokens. The server's page and the one that recognises in the browser share this file.

const NOT_IN_TEXT = ["<blank>", "<sos/eos>"];

function spelt(token, tokenType) {
  if (tokenType === "char") return token === "<space>" ? " " : token;
  if (tokenType === "bpe") return token.replaceAll("▁", " ");
  return ` ${token}`;
}

// Words of tokens {token, start_s, end_s} as {text, start_s, end_s}; joined with spaces they are the text that
// distill/decode/token_text.py makes of the tokens.
export function words(tokens, tokenType) {
  const list = [];
  let begins = true;
  for (const { token, start_s, end_s } of tokens) {
    if (NOT_IN_TEXT.includes(token)) continue;
    for (const part of spelt(token, tokenType).split(/(\s+)/)) {
      if (!part.trim()) {
        begins ||= part !== "";
      } else if (begins) {
        list.push({ text: part, start_s, end_s });
        begins = false;
      } else {
        Object.assign(list.at(-1), { text: list.at(-1).text + part, end_s });
      }
    }
  }
  return list;
}

// Words of a result as {text, stable, start_s, end_s}. Where a lexicon's words are others than those that the tokens
// spell, they have no times.
export function wordsOf({ text, stable, tokens }, tokenType) {
  const timed = words(tokens, tokenType);
  const count = (string) => string.split(" ").filter(Boolean);
  const shown = count(text);
  const settled = count(stable).length;
  return shown.map((word, n) => ({ ...(timed.length === shown.length && timed[n]), text: word, stable: n < settled }));
}
