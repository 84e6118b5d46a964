"""L2-regularised logistic regression: all folds, targets and values of C of one call, solved side by side.

The modules of this package use the letters of this page.

    n  rows                                    T  tasks of a group (tasks with the same K)
    D  features of a row                       F  folds of cross-validation
    Q  coordinates of a row in the eigenbasis, m  steps that L-BFGS remembers
       Q ≤ min(n, D)
    K  columns of a head: 1 for a sigmoid,     H  heads of a group: T · F, or T without folds
       else the classes of a softmax           A  heads that are evaluated or still active, A ≤ H
    P  = Q + 1 coefficients of a column,       J  columns that are multiplied: K − 1 of a softmax, or 1
       its intercept last                      c  columns of all heads in one product
    B  rows of a block                         r  leading coordinates in the preconditioner's block

The objective
    A task is one loss over the rows x_i: a softmax over K classes, or a sigmoid for two classes, for one
    class against the rest, or for one label of a multi-label target. A head is a task fitted without one of
    its folds, or on all rows. Like scikit-learn's LogisticRegression it minimises, over weights w (K, D) and
    intercepts b (K,),

        F(w, b) = C Σ_i s_i · loss(w x_i + b, y_i) + ½ ‖w‖².                                     (1)

    The features are standardised first. Intercepts are not penalised. s_i is the sample weight times the
    class weight; it is 0 where the row has no label or belongs to the head's own fold.

    Adding one vector to all columns of a softmax changes only the penalty, so at the optimum the columns sum
    to zero. Gradients sum to zero too, and steps are projected to do so. The last column is therefore minus
    the sum of the others and is never multiplied.

One pass over the rows serves all heads
    An iteration needs the logits Z = X Wᵀ, the residuals R = s (p − onehot(y)) and the gradient C RᵀX + W.
    The heads of all folds and targets share X; they differ in s and y alone. With their columns stacked in
    one W (c, D), an iteration is two matrix products over X. Reading X once for many heads makes the products
    bound by arithmetic, not by memory. Rows are sorted by fold where that pays, so that a block skips the
    heads that hold all of its rows out.

The coordinates
    The penalty does not change under rotation, so (1) is solved in the eigenbasis of the Gram matrix of the
    standardised rows, XᵀX = V Λ Vᵀ. Rows in memory are rotated once; where n < D, at most n coordinates are
    left. Streamed rows stay as they are, and coefficients and gradients are rotated instead.

The preconditioner
    The Hessian of (1) for the K columns of a head is

        I + C Σ_i S_i ⊗ x_i x_iᵀ,    S_i = s_i (diag p_i − p_i p_iᵀ).                            (2)

    If S_i were the same for all rows, each column's block would be diagonal in the eigenbasis, with entries
    1 + C a_k λ_j, where a_k = Σ_i S_i[k, k] / n. H0, the approximate inverse, uses this diagonal for the
    coordinates with small eigenvalues. For the r coordinates with the largest eigenvalues and the intercepts
    it inverts (2) exactly, either for all K columns together or, where K is large, for each column. Böhning's
    (1992) bound p (1 − p) ≤ ½ would give one matrix for all columns, but at large C it is far above the true
    curvature. The sums run over all rows: a sample of rows overestimates the directions in which it happens
    to vary. The heads of a task share H0, taken at the mean of their coefficients.

The steps
    Each head takes L-BFGS steps around its H0, in the compact form of Byrd, Nocedal and Schnabel (1994,
    theorem 2.2). S and Y hold the last m steps and changes of the gradient, R is the upper triangle of SᵀY
    and E its diagonal:

        H = γ H0 + [S  γ H0 Y] [ R⁻ᵀ (E + γ Yᵀ H0 Y) R⁻¹   −R⁻ᵀ ] [Sᵀ      ]                     (3)
                               [ −R⁻¹                        0  ] [γ Yᵀ H0 ]

    A direction costs two products with the history and a few m × m systems, which are batched over heads.
    γ = sᵀy / yᵀ H0 y of the newest step corrects the scale of H0. A step is shortened until it satisfies
    Armijo's condition. Each head has its own step length, and leaves the batch when it has converged.

The path over C
    The values of C are solved in ascending order. A head starts where the mean of the line through its last
    two optima and the parabola through its last three, as functions of log C, meets the new C. Its history is
    reused: a change of the gradient is y = C ∇²loss s + s, without the second term on intercepts, so at C′ =
    ρ C it becomes ρ y + (1 − ρ) s, or ρ y on intercepts. When C has been chosen, each task is fitted on all
    its rows, starting at the mean of the heads of its folds; tasks with different C share the passes.

When a head has converged
    F is 1-strongly convex in w, so F − F* ≤ ½ ‖∇F‖² (with the inverse curvature for intercepts). A head has
    converged when this bound, or both the decrease that (3) predicts and the one that recent steps
    extrapolate to, is below `tol` times the objective. At small C nearly all of the objective is what
    intercepts alone leave, and `tol` then refers to what the weights gained. The default `tol` of 1e-5 keeps
    the promise that an objective is within 1e-4 (relative) of the optimum.

Small problems on a CPU are computed by NumPy, others by torch (`arrays`).

Modules, from the top: `path` (all values of C) → `lbfgs` (the steps) and `preconditioner` (H0) → `objective`
(passes over the rows) → `design` (the rows and their coordinates) and `problem` (targets as tasks).
"""
