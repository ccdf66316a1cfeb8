// Compares the formulas with numbers of the Python functions, then brings the page to life.
"use strict";

function largestDifference() {
  const differences = [];
  for (const row of CHECKS.class) {
    CHECKS.logits.forEach((z, i) => {
      const [value, gradient] = CLASS_LOSSES[row.loss](z, row.target, row.exponent, row.alpha);
      differences.push(Math.abs(value - row.values[i]), Math.abs(gradient - row.gradients[i]));
    });
  }
  for (const row of CHECKS.side) {
    const logits = row.logits;
    differences.push(
      Math.abs(integral(logits) - row.integral), Math.abs(sideSigma(logits) - row.sigma),
      Math.abs(distributionFocalLoss(logits, row.distance) - row.dfl),
      Math.abs(twoBinEntropy(row.distance, logits.length) - row.minimum),
    );
  }
  return { count: differences.length, largest: Math.max(...differences) };
}

function reportChecks() {
  const { count, largest } = largestDifference(), fine = largest < 1e-6;
  const agreed = `compared its formulas with ${count} numbers from the Python functions: all agree to six decimals.`;
  const failed = `does not agree with the Python functions it was made from (by ${largest}): do not trust it.`;
  byId("checks").textContent = fine ? `On opening, this page ${agreed}` : `This page ${failed}`;
  byId("checks").classList.toggle("wrong", !fine);
}

reportChecks();
startClassScore();
startSide();
