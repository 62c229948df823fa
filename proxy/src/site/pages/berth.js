// A little that helps where there are scripts; every page works without.
"use strict";

// Whatever is to be pasted gets a button that copies it.
for (const box of document.querySelectorAll("pre.command")) {
  const button = document.createElement("button");
  button.type = "button";
  button.className = "quiet small copy";
  button.textContent = "Copy";
  button.addEventListener("click", async () => {
    await navigator.clipboard.writeText(box.querySelector("code").textContent);
    button.textContent = "Copied";
    setTimeout(() => { button.textContent = "Copy"; }, 2000);
  });
  box.append(button);
}

// A list is searched while one types.
for (const field of document.querySelectorAll("input[data-search]")) {
  let waiting, last;
  field.addEventListener("input", () => {
    clearTimeout(waiting);
    waiting = setTimeout(async () => {
      const address = new URL(field.form.action);
      for (const [name, value] of new FormData(field.form)) address.searchParams.set(name, value);
      const ours = last = {};
      const answer = await fetch(address);
      const text = await answer.text();
      // Answers may overtake each other: only the last question's counts.
      if (!answer.ok || ours !== last) return;
      const page = new DOMParser().parseFromString(text, "text/html");
      const found = page.querySelector(field.dataset.search);
      if (found) document.querySelector(field.dataset.search).replaceWith(found);
      history.replaceState(null, "", address);
    }, 150);
  });
}
